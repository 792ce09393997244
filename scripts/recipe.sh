# Sourced by the training scripts: flags of the published recipe that stages share.

# shellcheck disable=SC2034
every_stage=(
    --bf16 True
    --weight_decay 0
    --warmup_steps 0.03
    --lr_scheduler_type cosine
    --model_max_length 32768
    --gradient_checkpointing True
    --logging_steps 1
    --dataloader_num_workers "${WORKERS:-4}"
)

# Stages two and three: chat format, any resolution, compression; decoder, projector and tower learn.
finetuning=(
    --unfreeze_mm_vision_tower True
    --mm_vision_select_layer -2
    --mm_projector_type mlp2x_gelu
    --mm_patch_merge_type unires
    --mm_spatial_pool_stride 2
    --image_aspect_ratio anyres
    --image_grid_pinpoints published
    --enable_beacon True
    --beacon_window 1440
    --beacon_stride 1440
    --beacon_attn full-coverage
    --beacon_attend_prev True
    --beacon_sink_size 0
    --beacon_ratio_mix step-random
    --beacon_param q k v
    --beacon_pos interleave
    --group_by_stride strict
    --version qwen_1_5
    --save_strategy steps
    --save_steps 1000
    --save_total_limit 1
)
