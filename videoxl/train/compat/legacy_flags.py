"""Command lines written for the published code: renamed flags are translated, unsupported methods are refused."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from transformers import HfArgumentParser

from videoxl.errors import ArgumentError
from videoxl.train.config import DataArguments, ModelArguments, TrainingArguments
from videoxl.utils.resources import resource

_RENAMED = {
    "evaluation_strategy": "eval_strategy",
    "warmup_ratio": "warmup_steps",  # transformers 5: a float below 1 is a share of all steps
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "per_gpu_eval_batch_size": "per_device_eval_batch_size",
    "no_cuda": "use_cpu",
    "torch_dtype": "dtype",
}
# Flags without effect here, and the reason to print.
_IGNORED = {
    "lazy_preprocess": "samples are always read when they are needed",
    "is_multimodal": "the model decides",
    "mm_use_im_patch_token": "the published models have no such token",
    "save_safetensors": "weights are always saved as safetensors",
    "logging_dir": "logs are in the output folder",
    "cache_dir": "set HF_HOME",
    "mpt_attn_impl": "there is no MPT here",
    "verbose_logging": "use --log_level info",
    "vision_tower_pretrained": "the tower's folder says what it is",
    "model_class_name": "there is one class",
    "beacon_accum": "beacons always see those before them",
    "mm_spatial_pool_out_channels": "pooling keeps the number of channels",
}
# Parts of the published code base that Video-XL does not use; only these values mean "off".
_ABSENT = {
    "mm_resampler_type": ("spatial_pool", "None", "none"),
    "mm_use_im_start_end": ("False", "false"),
    "s2": ("False", "false"),
    "use_pos_skipping": ("False", "false"),
    "tune_mm_vision_resampler": ("False", "false"),
    "freeze_mm_vision_resampler": ("False", "false"),
    "unfreeze_language_model": ("False", "false"),
    "group_by_modality_length_auto": ("False", "false"),
    "group_by_length": ("False", "false"),
    "lora_weight_path": ("",),
}
_ABSENT_PREFIXES = (
    "mm_perceiver_", "mm_qformer_", "mm_mask_drop_", "s2_", "pos_skipping_", "rope_scaling_", "image_crop_",
    "image_split_",
)  # fmt: skip


def parse_command_line(arguments: Sequence[str]) -> tuple[ModelArguments, DataArguments, TrainingArguments]:
    """The three groups of arguments.

    Raises:
        ArgumentError: an unknown flag (with the nearest known one), or a method that Video-XL does not contain.
    """
    parser = HfArgumentParser(
        (ModelArguments, DataArguments, TrainingArguments), allow_abbrev=False, prog="python -m videoxl.train"
    )
    known = {option.lstrip("-") for action in parser._actions for option in action.option_strings}
    arguments, notices = translate(arguments, known)
    if os.environ.get("RANK", "0") == "0":
        for notice in notices:
            print(f"note: {notice}", file=sys.stderr)
    parsed = parser.parse_args_into_dataclasses(args=arguments, return_remaining_strings=True, look_for_args_file=False)
    *groups, unknown = parsed
    if unknown:
        name = unknown[0].split("=")[0].lstrip("-")
        near = difflib.get_close_matches(name, sorted(known), n=1)
        hint = f"; did you mean --{near[0]}?" if near else ""
        raise ArgumentError(f"unknown flag {unknown[0]}{hint} (--help lists all)")
    return tuple(groups)


def translate(arguments: Sequence[str], known: set[str]) -> tuple[list[str], list[str]]:
    """Rewrite old names.

    Returns:
        The arguments under their current names, and one notice for each change.
    """
    kept: list[str] = []
    notices: list[str] = []
    position = 0
    while position < len(arguments):
        flag, values, position = _take_flag(arguments, position)
        if flag is None:
            kept += values
            continue
        name = flag.lstrip("-").replace("-", "_")
        if name in known:
            kept += [f"--{name}", *_moved_files(name, values, notices)]
        elif name in _RENAMED:
            notices.append(f"--{name} is now called --{_RENAMED[name]}")
            kept += [f"--{_RENAMED[name]}", *values]
        elif name == "local_rank":
            continue  # from launchers, which also set it in the environment
        elif name in _IGNORED:
            notices.append(f"--{name} has no effect: {_IGNORED[name]}")
        elif name in _ABSENT or name.startswith(_ABSENT_PREFIXES):
            off = _ABSENT.get(name, ())
            if (values or ["True"])[0] not in off:
                raise ArgumentError(
                    f"--{name} {' '.join(values)} asks for a method that Video-XL does not contain; leave it out"
                )
            if name != "mm_resampler_type":
                notices.append(f"--{name} has no effect: it is off here anyway")
        else:
            kept += [flag, *values]
    return kept, notices


def _take_flag(arguments: Sequence[str], position: int) -> tuple[str | None, list[str], int]:
    """The flag at `position` (None: a bare value), its values, and the position of the next one."""
    first = arguments[position]
    if not first.startswith("--"):
        return None, [first], position + 1
    flag, equals, value = first.partition("=")
    values = [value] if equals else []
    position += 1
    while not equals and position < len(arguments) and not arguments[position].startswith("--"):
        values.append(arguments[position])
        position += 1
    return flag, values, position


def _moved_files(name: str, values: list[str], notices: list[str]) -> list[str]:
    """Published commands name `scripts/zero3.json`; here the configurations are in `configs/deepspeed/`."""
    if name != "deepspeed" or not values or Path(values[0]).is_file():
        return values
    here = resource("configs/deepspeed") / Path(values[0]).name
    if not here.is_file():
        raise ArgumentError(
            f"--deepspeed {values[0]}: no such file; configs/deepspeed/ holds zero2, zero3 and their offloads"
        )
    notices.append(f"--deepspeed {values[0]} is taken from configs/deepspeed/")
    return [str(here)]
