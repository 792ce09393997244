#!/usr/bin/env bash
# Stage one: train the projector on captions, with everything else frozen and without compression. Writes mm_projector.bin.
#
#   MODEL=Qwen2-7B-Instruct VISION_TOWER=clip-vit-large-patch14-336 DATA=captions.json bash scripts/pretrain.sh [flags]
#
# Paths and sizes are environment variables (below and in scripts/launch.sh); shared flags are in
# scripts/recipe.sh; flags on the command line override all others.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/launch.sh
. scripts/recipe.sh

if [ -z "${DATA:-}" ]; then  # the published tree; with data of your own, files are looked for beside it
    IMAGE_FOLDER=${IMAGE_FOLDER:-video_traindata/Bunny-v1_0-data/pretrain/images}
    VIDEO_FOLDER=${VIDEO_FOLDER:-video_traindata}
fi
data=${DATA:-"video_traindata/anno/{laion_2m,textvr,youcook2,internvid}.json"}
launch configs/deepspeed/zero3.json \
    --model_name_or_path "${MODEL:-Qwen2-7B-Instruct}" \
    --version plain \
    --data_path "$data" \
    ${IMAGE_FOLDER:+--image_folder "$IMAGE_FOLDER"} \
    ${VIDEO_FOLDER:+--video_folder "$VIDEO_FOLDER"} \
    --vision_tower "${VISION_TOWER:-clip-vit-large-patch14-336}" \
    --output_dir "${OUTPUT:-checkpoints/pretrain}" \
    --pretrain True \
    --mm_tunable_parts mm_mlp_adapter \
    --mm_vision_select_layer -2 \
    --mm_projector_type mlp2x_gelu \
    --mm_spatial_pool_stride 2 \
    --image_aspect_ratio square \
    --frames_upbound "${FRAMES:-4}" \
    --num_train_epochs "${EPOCHS:-1}" \
    --per_device_train_batch_size "${BATCH:-8}" \
    --gradient_accumulation_steps "${ACCUMULATE:-4}" \
    --learning_rate "${LEARNING_RATE:-5e-4}" \
    --save_strategy no \
    --run_name pretrain \
    "${every_stage[@]}" \
    "$@"
