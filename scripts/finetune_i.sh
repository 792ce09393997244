#!/usr/bin/env bash
# Stage two: single pictures at any resolution, compressed; decoder, projector and tower are trained.
#
#   MODEL=Qwen2-7B-Instruct PROJECTOR=checkpoints/pretrain/mm_projector.bin DATA=pictures.json bash scripts/finetune_i.sh [flags]
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
fi
launch configs/deepspeed/zero2.json \
    --model_name_or_path "${MODEL:-Qwen2-7B-Instruct}" \
    --data_path "${DATA:-video_traindata/anno/bunny_695k_pure.json}" \
    ${IMAGE_FOLDER:+--image_folder "$IMAGE_FOLDER"} \
    --vision_tower "${VISION_TOWER:-clip-vit-large-patch14-336}" \
    ${projector:+--pretrain_mm_mlp_adapter "$projector"} \
    --output_dir "${OUTPUT:-checkpoints/videoxl_finetune_i}" \
    --beacon_ratio 2 4 8 12 16 \
    --num_train_epochs "${EPOCHS:-1}" \
    --per_device_train_batch_size "${BATCH:-1}" \
    --gradient_accumulation_steps "${ACCUMULATE:-8}" \
    --learning_rate "${LEARNING_RATE:-1e-5}" \
    --run_name finetune_i \
    "${every_stage[@]}" \
    "${finetuning[@]}" \
    "$@"
