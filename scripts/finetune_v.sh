#!/usr/bin/env bash
# Stage three: pictures, several pictures and videos together, compressed; decoder, projector and tower are trained.
#
#   MODEL=Qwen2-7B-Instruct PROJECTOR=checkpoints/pretrain/mm_projector.bin DATA=mixture.yaml bash scripts/finetune_v.sh [flags]
#
# Paths and sizes are environment variables (below and in scripts/launch.sh); shared flags are in
# scripts/recipe.sh; flags on the command line override all others.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/launch.sh
. scripts/recipe.sh

projector=${PROJECTOR-checkpoints/pretrain/mm_projector.bin}  # PROJECTOR= (empty): the model has its own
if [ -z "${DATA:-}" ]; then  # the published tree; with data of your own, files are looked for beside it
    IMAGE_FOLDER=${IMAGE_FOLDER:-video_traindata/Bunny-v1_0-data/finetune/images}
    VIDEO_FOLDER=${VIDEO_FOLDER:-video_traindata}
fi
data=${DATA:-"video_traindata/anno/{cinepine_order,bunny_695k_pure,baaicaption,cinepine_10k,gpt4o_image,gpt4o_video,nextqa,sharegpt4v}.json"}
launch configs/deepspeed/zero2_offload.json \
    --model_name_or_path "${MODEL:-Qwen2-7B-Instruct}" \
    --data_path "$data" \
    ${IMAGE_FOLDER:+--image_folder "$IMAGE_FOLDER"} \
    ${VIDEO_FOLDER:+--video_folder "$VIDEO_FOLDER"} \
    --vision_tower "${VISION_TOWER:-clip-vit-large-patch14-336}" \
    ${projector:+--pretrain_mm_mlp_adapter "$projector"} \
    --output_dir "${OUTPUT:-checkpoints/videoxl_finetune_v}" \
    --frames_upbound "${FRAMES:-128}" \
    --beacon_ratio 2 4 8 \
    --num_train_epochs "${EPOCHS:-3}" \
    --per_device_train_batch_size "${BATCH:-1}" \
    --gradient_accumulation_steps "${ACCUMULATE:-8}" \
    --learning_rate "${LEARNING_RATE:-1e-5}" \
    --run_name finetune_v \
    "${every_stage[@]}" \
    "${finetuning[@]}" \
    "$@"
