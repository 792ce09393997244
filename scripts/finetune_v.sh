#!/usr/bin/env bash
# Stage three: pictures, several pictures and videos together, compressed; decoder, projector and tower learn.
#
#   MODEL=Qwen2-7B-Instruct PROJECTOR=checkpoints/pretrain/mm_projector.bin DATA=mixture.yaml bash scripts/finetune_v.sh [flags]
#
# Paths and sizes are environment variables (below and in scripts/launch.sh); flags are passed on and win.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/launch.sh

data=${DATA:-"video_traindata/anno/{cinepine_order,bunny_695k_pure,baaicaption,cinepine_10k,gpt4o_image,gpt4o_video,nextqa,sharegpt4v}.json"}
launch configs/deepspeed/zero2_offload.json \
    --model_name_or_path "${MODEL:-Qwen2-7B-Instruct}" \
    --version qwen_1_5 \
    --data_path "$data" \
    --image_folder "${IMAGE_FOLDER:-video_traindata/Bunny-v1_0-data/finetune/images}" \
    --video_folder "${VIDEO_FOLDER:-video_traindata}" \
    --vision_tower "${VISION_TOWER:-clip-vit-large-patch14-336}" \
    --pretrain_mm_mlp_adapter "${PROJECTOR:-checkpoints/pretrain/mm_projector.bin}" \
    --output_dir "${OUTPUT:-checkpoints/videoxl_finetune_v}" \
    --unfreeze_mm_vision_tower True \
    --mm_vision_select_layer -2 \
    --mm_projector_type mlp2x_gelu \
    --mm_patch_merge_type unires \
    --mm_spatial_pool_stride 2 \
    --image_aspect_ratio anyres \
    --image_grid_pinpoints published \
    --frames_upbound "${FRAMES:-128}" \
    --enable_beacon True \
    --beacon_window 1440 \
    --beacon_stride 1440 \
    --beacon_attn full-coverage \
    --beacon_attend_prev True \
    --beacon_sink_size 0 \
    --beacon_ratio 2 4 8 \
    --beacon_ratio_mix step-random \
    --beacon_param q k v \
    --beacon_pos interleave \
    --group_by_stride strict \
    --bf16 True \
    --num_train_epochs "${EPOCHS:-3}" \
    --per_device_train_batch_size "${BATCH:-1}" \
    --gradient_accumulation_steps "${ACCUMULATE:-8}" \
    --learning_rate "${LEARNING_RATE:-1e-5}" \
    --weight_decay 0 \
    --warmup_steps 0.03 \
    --lr_scheduler_type cosine \
    --model_max_length 32768 \
    --gradient_checkpointing True \
    --save_strategy steps \
    --save_steps 1000 \
    --save_total_limit 1 \
    --logging_steps 1 \
    --dataloader_num_workers "${WORKERS:-4}" \
    --run_name finetune_v \
    "$@"
