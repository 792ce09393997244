"""Flags of a training run, named as in the published scripts.

`legacy_flags.py` handles flags that transformers dropped or that belong to methods Video-XL does not contain.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import transformers

from videoxl.errors import ArgumentError
from videoxl.train.tasks import CONVERSATION, task_names
from videoxl.utils.compat import without_own_checkpointing

PARTS = ("mm_vision_tower", "mm_mlp_adapter", "mm_language_model", "mm_beacon")
GROUPINGS = ("none", "strict", "relaxed")
MUON_BESIDE = ("adamw_torch", "adamw_torch_fused")


def _help(text: str, **kwargs):
    return field(metadata={"help": text}, **kwargs)


@dataclass
class ModelArguments:
    """The model that training starts from, and its trainable modules."""

    model_name_or_path: str = _help("Base: a Qwen2 model, or a Video-XL checkpoint.", default="")
    version: str = _help("Prompt version: qwen_1_5 (chat) or plain (placeholder and caption).", default="qwen_1_5")
    vision_tower: str | None = _help("Folder of the CLIP tower, if the base has none.", default=None)
    pretrain_mm_mlp_adapter: str | None = _help("Projector from stage one, or its folder.", default=None)
    mm_tunable_parts: str | None = _help(
        f"Comma-separated parts to train: any of {', '.join(PARTS)} (mm_beacon: only the beacons' projections and "
        "embedding). Overrides the next four flags.",
        default=None,
    )
    tune_mm_mlp_adapter: bool = _help("Train only the projector.", default=False)
    unfreeze_mm_vision_tower: bool = _help("Train the vision tower as well.", default=False)
    freeze_backbone: bool = _help("Freeze the decoder.", default=False)
    freeze_mm_mlp_adapter: bool = _help("Freeze the projector.", default=False)

    mm_vision_select_layer: int | None = _help("Hidden state of the tower to use (default: the base's).", default=None)
    mm_vision_select_feature: str | None = _help("Only patch is supported.", default=None)
    mm_projector_type: str | None = _help("Kind of projector: linear, identity or mlpNx_gelu.", default=None)
    mm_patch_merge_type: str | None = _help(
        "How views of a picture are merged: unires (tiles pooled) or flat (unpooled; the default with --pretrain).",
        default=None,
    )
    mm_spatial_pool_stride: int | None = _help("Stride of the pooling of video frames.", default=None)
    mm_spatial_pool_mode: str | None = _help("Pooling of video frames: average or max.", default=None)

    enable_beacon: bool = _help("Compress visual tokens (False: keep all).", default=True)
    beacon_window: int | None = _help("Visual tokens per window.", default=None)
    beacon_stride: int | None = _help("Must equal beacon_window.", default=None)
    beacon_attn: str | None = _help("Only full-coverage is supported.", default=None)
    beacon_ratio: list[int] | None = _help("Compression ratios to draw from.", default=None)
    beacon_ratio_mix: str | None = _help(
        "How a ratio is chosen: step-random (drawn per window), instance-random (per sample), sequence or adapt-N.",
        default=None,
    )
    beacon_param: list[str] | None = _help("Projections with separate weights for beacons: q k v o mlp.", default=None)
    beacon_embed_init: str | None = _help("Only eos is supported.", default=None)
    beacon_sink_size: int | None = _help("Only 0 is supported.", default=None)
    beacon_attend_prev: bool | None = _help("Only True is supported.", default=None)
    beacon_pos: str | None = _help("Only interleave is supported.", default=None)
    beacon_parallel_window: int | None = _help("Only 1 is supported.", default=None)


@dataclass
class DataArguments:
    """Records, pictures and videos."""

    data_path: str = _help("Records: FILE.json, PREFIX{a,b,c}.json or a mixture in YAML.", default="")
    eval_data: str | None = _help("Records to evaluate on, in the same forms.", default=None)
    image_folder: str | None = _help("Folder of relative picture paths (default: the records' folder).", default=None)
    video_folder: str | None = _help("Folder of relative video paths (default: the records' folder).", default=None)
    image_aspect_ratio: str | None = _help("How pictures are fitted: square, pad or anyres.", default=None)
    image_grid_pinpoints: str | None = _help(
        "Grids for anyres: a list of (width, height), (1x1),...,(6x6), or published: the 200 grids of 2 to 49 tiles.",
        default=None,
    )
    video_fps: float = _help("Frames per second to read.", default=1.0)
    frames_upbound: int = _help("Most frames per video; beyond it they are evenly spaced (0: no limit).", default=0)
    video_timeout: float | None = _help("Kill a decoder that hangs for this many seconds.", default=120.0)
    control_tokens_in_records: bool = _help(
        "Let text such as <|im_end|> in a record be that token, as the published code does.", default=False
    )
    max_bad_fraction: float = _help("Stop when more than this share of samples is unreadable.", default=0.01)
    cache_features: str | None = _help(
        "Folder to cache features of a frozen tower: each picture and video is encoded once.", default=None
    )


@dataclass
class TrainingArguments(transformers.TrainingArguments):
    """transformers' arguments, with Video-XL's own."""

    output_dir: str | None = _help("Folder for checkpoints and the result.", default=None)
    overwrite_output_dir: bool = _help("Replace the finished run that --output_dir holds.", default=False)
    remove_unused_columns: bool = False
    # The union must keep transformers' order of types, which its parser needs.
    report_to: None | str | list[str] = _help("tensorboard, wandb, none, ...", default="tensorboard")  # noqa: RUF036
    model_max_length: int = _help("Longest sample, in decoder positions; longer ones are left out.", default=32768)
    gradient_checkpointing: bool = _help("Recompute activations in the backward pass.", default=True)
    attn_implementation: str = _help("sdpa, eager or flash_attention_2.", default="sdpa")
    ddp_find_unused_parameters: bool | None = False

    group_by_stride: str = _help(
        "Number of windows in the batches of a step: strict (equal; batches that fill no step are left out), relaxed "
        "(nearly equal) or none (any).",
        default="none",
    )
    sort_by_stride: str | None = _help(
        "With --group_by_stride, order of steps by number of windows: ascend or descend (default: random).",
        default=None,
    )
    group_by_modality_length: bool = _help(
        "Group samples of similar length, those with and without visual input apart.", default=False
    )
    group_by_varlen: bool = _help("Group samples of similar length.", default=False)

    mm_projector_lr: float | None = _help("Learning rate of the projector.", default=None)
    mm_vision_tower_lr: float | None = _help("Learning rate of the vision tower.", default=None)
    muon_lr: float = _help(
        "Muon's learning rate for the matrices of decoder and vision tower (0: --optim trains them too). "
        "--mm_vision_tower_lr scales it in proportion for the tower. Needs whole matrices (no DeepSpeed, FSDP or LoRA) "
        "and PyTorch's AdamW for the rest.",
        default=0.0,
    )
    pretrain: bool = _help("Stage one: no compression, views unpooled.", default=False)

    bits: int = _help("Bits of the frozen weights: 16, 8 or 4 (with LoRA).", default=16)
    double_quant: bool = _help("Quantise the quantisation constants too.", default=True)
    quant_type: str = _help("Type of 4-bit weights: nf4 or fp4.", default="nf4")
    lora_enable: bool = _help("Train low-rank adapters of the decoder.", default=False)
    lora_r: int = 64
    lora_alpha: int = 16
    lora_dropout: float = 0.05
    lora_bias: str = "none"

    eval_beacon_ratio: int = _help("Compression ratio in evaluation.", default=8)
    eval_generation: bool = _help("Also answer each question and count exact matches.", default=False)
    eval_max_new_tokens: int = _help("Longest answer in evaluation.", default=64)

    train_task: str = _help(
        "conversation; vision_classes (the tower alone, on class labels), vision_patches (the same for every patch; "
        "streamed data only) or vision_words (tower and projector, towards the decoder's words for the classes).",
        default=CONVERSATION,
    )
    position_gap_max: int = _help("Largest random gap in RoPE positions before a window or text (0: none).", default=0)
    bptt_windows: int | None = _help(
        "Backpropagate through the last N windows and those that hold a record's `evidence` (default: all).",
        default=None,
    )
    dry_run: bool = _help("Print plan, memory and the first batch, then stop.", default=False)

    def __post_init__(self):
        if not self.output_dir:
            raise ArgumentError("--output_dir is missing; name the folder for checkpoints and the result")
        # The model's layers do their own checkpointing, enabled in `build_model`; transformers' must stay off.
        self.checkpoint_windows = bool(self.gradient_checkpointing)
        self.gradient_checkpointing = without_own_checkpointing()
        super().__post_init__()
        # One process uses one device: transformers would copy the model to all GPUs it sees and split every video.
        _ = self.device  # counts the GPUs
        self._n_gpu = min(self._n_gpu, 1)


def check_arguments(model: ModelArguments, data: DataArguments, training: TrainingArguments) -> None:
    """Check combinations of flags before anything is loaded. Raises `ArgumentError`."""
    for flag, value in (("model_name_or_path", model.model_name_or_path), ("data_path", data.data_path)):
        if not value:
            raise ArgumentError(f"--{flag} is missing")
    for flag, value, allowed in (
        ("version", model.version, ("qwen_1_5", "plain")),
        ("group_by_stride", training.group_by_stride, GROUPINGS),
        ("sort_by_stride", training.sort_by_stride, (None, "ascend", "descend")),
        ("train_task", training.train_task, task_names()),
        ("bits", training.bits, (16, 8, 4)),
    ):
        if value not in allowed:
            raise ArgumentError(f"--{flag} is {value!r}; use {' or '.join(str(x) for x in allowed if x is not None)}")
    for flag, value in (
        ("video_fps", data.video_fps),
        ("model_max_length", training.model_max_length),
        ("per_device_train_batch_size", training.per_device_train_batch_size),
    ):
        if not value > 0:
            raise ArgumentError(f"--{flag} is {value}; it must be above 0")
    for flag, value in (("frames_upbound", data.frames_upbound), ("position_gap_max", training.position_gap_max)):
        if value < 0:
            raise ArgumentError(f"--{flag} is {value}; it must be at least 0")
    if training.bptt_windows is not None and training.bptt_windows < 1:
        raise ArgumentError(f"--bptt_windows is {training.bptt_windows}; it must be at least 1")
    if not 0 <= data.max_bad_fraction <= 1:
        raise ArgumentError(f"--max_bad_fraction is {data.max_bad_fraction}; it must be between 0 and 1")
    if training.load_best_model_at_end:
        raise ArgumentError("--load_best_model_at_end is not supported; choose a checkpoint by its eval_loss")
    learns_in_full = not training.lora_enable and model.mm_tunable_parts not in ("mm_mlp_adapter",)
    if training.bits != 16 and learns_in_full and not model.tune_mm_mlp_adapter:
        raise ArgumentError(
            f"weights of {training.bits} bits cannot be trained; add --lora_enable True, or train only the projector"
        )
    if training.eval_generation and not data.eval_data:
        raise ArgumentError("--eval_generation needs questions: name them with --eval_data")
    if training.eval_strategy != "no" and not data.eval_data:
        raise ArgumentError(f"--eval_strategy {training.eval_strategy.value} needs --eval_data")
    if data.cache_features and shards_parameters(training):
        raise ArgumentError(
            "--cache_features does not work with ZeRO-3 or FSDP, which need every process to run the tower"
        )
    if training.eval_generation and model.version != "qwen_1_5":
        raise ArgumentError("--eval_generation asks questions in the chat format; it needs --version qwen_1_5")
    if training.muon_lr < 0:
        raise ArgumentError(f"--muon_lr is {training.muon_lr}; it must be at least 0")
    if training.muon_lr and (training.deepspeed or training.fsdp):
        raise ArgumentError("--muon_lr needs whole matrices, which DeepSpeed and FSDP do not keep; leave it at 0 there")
    if training.muon_lr and (training.lora_enable or training.optim not in MUON_BESIDE):
        raise ArgumentError(
            f"--muon_lr needs --optim {' or '.join(MUON_BESIDE)} and no --lora_enable; --optim is "
            f"{getattr(training.optim, 'value', training.optim)}"
        )
    if training.muon_lr and training.mm_vision_tower_lr is not None and training.learning_rate <= 0:
        raise ArgumentError(
            "--muon_lr with --mm_vision_tower_lr divides the tower's rate by --learning_rate, which must be above 0 "
            f"and is {training.learning_rate}"
        )
    if training.bptt_windows is not None and shards_parameters(training):
        raise ArgumentError(
            "--bptt_windows does not work with ZeRO-3 or FSDP, whose processes must run the same backward pass"
        )


def shards_parameters(training: TrainingArguments) -> bool:
    """Whether weights are sharded over processes (ZeRO-3, FSDP), which makes every pass a collective call."""
    if training.deepspeed:
        return training.hf_deepspeed_config.is_zero3()
    return bool(training.fsdp)


def compute_dtype(training: TrainingArguments) -> torch.dtype:
    if training.bf16:
        return torch.bfloat16
    return torch.float16 if training.fp16 else torch.float32
