"""Command lines written for the published code."""

from __future__ import annotations

import re
import shlex

import pytest
from conftest import ROOT

from videoxl.errors import ArgumentError
from videoxl.train.compat.legacy_flags import parse_command_line
from videoxl.train.config import check_arguments

# The flags of the published stage scripts, as they stand there (paths shortened).
PUBLISHED = """
--deepspeed scripts/zero3.json --model_name_or_path Qwen2-7B-Instruct --version plain --data_path a/{b,c}.json
--image_folder i --video_folder v --vision_tower clip-vit-large-patch14-336 --image_aspect_ratio square
--mm_tunable_parts="mm_mlp_adapter" --mm_vision_select_layer -2 --mm_projector_type mlp2x_gelu
--mm_use_im_start_end False --mm_use_im_patch_token False --mm_spatial_pool_stride 2 --mm_resampler_type
"spatial_pool" --mm_spatial_pool_out_channels 1024 --bf16 True --num_train_epochs 1
--per_device_train_batch_size 8 --per_device_eval_batch_size 4 --gradient_accumulation_steps 4
--evaluation_strategy "no" --save_strategy "no" --save_steps 1000 --learning_rate 5e-4 --weight_decay 0.
--warmup_ratio 0.03 --lr_scheduler_type "cosine" --logging_steps 1 --model_max_length 32768
--gradient_checkpointing True --dataloader_num_workers 4 --lazy_preprocess True --run_name pretrain
--frames_upbound 4 --pretrain True --group_by_modality_length True --unfreeze_mm_vision_tower True
--mm_vision_select_feature patch --image_grid_pinpoints "[(336, 672), (336, 1008)]" --mm_patch_merge_type
unires --save_total_limit 1 --group_by_stride strict --enable_beacon True --beacon_window 1440 --beacon_stride
1440 --beacon_attn full-coverage --beacon_attend_prev True --beacon_sink_size 0 --beacon_ratio 2 4 8 12 16
--beacon_ratio_mix step-random --beacon_param q k v --beacon_pos interleave --lora_enable True
--mm_vision_tower_lr 2e-6 --mm_projector_lr 1e-4 --use_cpu True"""


def parse(text: str, tmp_path):
    return parse_command_line([*shlex.split(text), "--output_dir", str(tmp_path)])


def test_the_published_command_lines_are_understood(tmp_path, capsys):
    model, data, training = parse(PUBLISHED, tmp_path)
    check_arguments(model, data, training)
    assert (model.beacon_ratio, model.beacon_param) == ([2, 4, 8, 12, 16], ["q", "k", "v"])
    assert (model.mm_vision_select_layer, model.mm_tunable_parts) == (-2, "mm_mlp_adapter")
    assert (training.warmup_steps, training.eval_strategy.value) == (0.03, "no")
    assert (training.mm_vision_tower_lr, training.mm_projector_lr, training.lora_enable) == (2e-6, 1e-4, True)
    assert training.report_to == ["tensorboard"] and training.checkpoint_windows
    notes = capsys.readouterr().err.splitlines()
    changed = {re.match(r"note: --(\S+)", note).group(1) for note in notes}
    assert changed == {
        "deepspeed", "evaluation_strategy", "warmup_ratio", "lazy_preprocess", "mm_use_im_patch_token",
        "mm_use_im_start_end", "mm_spatial_pool_out_channels",
    }  # fmt: skip


def test_a_flag_that_is_unknown_is_refused_with_the_nearest_one(tmp_path):
    with pytest.raises(ArgumentError, match=r"unknown flag --beacon_rato; did you mean --beacon_ratio\?"):
        parse("--beacon_rato 2 4", tmp_path)


@pytest.mark.parametrize(
    "flag", ["--mm_resampler_type perceiver", "--s2 True", "--mm_qformer_depth 3", "--mm_use_im_start_end"]
)
def test_methods_that_video_xl_does_not_contain_are_refused(tmp_path, flag):
    with pytest.raises(ArgumentError, match="does not contain"):
        parse(flag, tmp_path)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("", "--model_name_or_path is missing"),
        ("--model_name_or_path m", "--data_path is missing"),
        ("--model_name_or_path m --data_path d --version v1", "use qwen_1_5 or plain"),
        ("--model_name_or_path m --data_path d --group_by_stride hard", "strict"),
        ("--model_name_or_path m --data_path d --bits 4", "cannot be trained; add --lora_enable"),
        ("--model_name_or_path m --data_path d --eval_generation True", "name them with --eval_data"),
        ("--model_name_or_path m --data_path d --bptt_windows 0", "at least 1"),
        ("--model_name_or_path m --data_path d --eval_strategy epoch", "needs --eval_data"),
        ("--model_name_or_path m --data_path d --max_bad_fraction 2", "between 0 and 1"),
        ("--model_name_or_path m --data_path d --deepspeed configs/deepspeed/zero3.json --bptt_windows 2", "ZeRO-3"),
    ],
)
def test_what_cannot_work_is_said(tmp_path, flags, message):
    with pytest.raises(ArgumentError, match=message):
        check_arguments(*parse(f"--use_cpu True {flags}", tmp_path))


def test_a_missing_output_folder_is_said():
    with pytest.raises(ArgumentError, match="--output_dir is missing"):
        parse_command_line(["--use_cpu", "True"])


def test_every_deepspeed_configuration_is_what_its_name_says():
    import json

    for path in (ROOT / "configs" / "deepspeed").iterdir():
        zero = json.loads(path.read_text())["zero_optimization"]
        assert zero["stage"] == int(re.search(r"zero(\d)", path.name).group(1))
        assert ("offload_optimizer" in zero) == path.stem.endswith("offload")
