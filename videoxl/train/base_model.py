"""The model that training starts from: a Qwen2 base or a Video-XL checkpoint, with tower, projector and beacons."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import BitsAndBytesConfig
from transformers.integrations.deepspeed import set_hf_deepspeed_config, unset_hf_deepspeed_config

from videoxl.errors import ArgumentError, CheckpointError
from videoxl.media.pictures import parse_grids
from videoxl.media.pixels import VideoXLImageProcessor
from videoxl.media.views import is_anyres
from videoxl.model.configuration import VideoXLConfig
from videoxl.model.loading import UNQUANTIZED, load_projector, pick_attention
from videoxl.model.modeling import LlavaQwenForCausalLM
from videoxl.model.tokenizer import load_tokenizer as read_tokenizer
from videoxl.model.towers import VisionTower, find_tower_folder, tower_class
from videoxl.train.config import DataArguments, ModelArguments, TrainingArguments, compute_dtype
from videoxl.train.lora import add_adapters
from videoxl.train.trainable import freeze_others, learning_parts
from videoxl.utils.compat import enable_checkpointing

# Kept in 16 bits, so that they can be initialised as copies; together a fifteenth of the decoder.
_UNQUANTIZED = [*UNQUANTIZED, *(f"beacon_{name}_proj" for name in ("q", "k", "v", "o", "up", "down"))]
_TOWER, _PROJECTOR = "model.vision_tower.", "model.mm_projector."
# Flags that overwrite the configuration key of the same name, if they are given.
_CONFIGURED = (
    "beacon_window", "beacon_stride", "beacon_attn", "beacon_ratio", "beacon_ratio_mix", "beacon_param",
    "beacon_embed_init", "beacon_sink_size", "beacon_attend_prev", "beacon_pos", "beacon_parallel_window",
    "mm_vision_select_layer", "mm_vision_select_feature", "mm_projector_type", "mm_patch_merge_type",
    "mm_spatial_pool_stride", "mm_spatial_pool_mode",
)  # fmt: skip


def load_tokenizer(base: str, version: str, max_length: int):
    """Load the base's tokenizer. Raises `CheckpointError` if it lacks the chat tokens that the prompt version needs."""
    tokenizer = read_tokenizer(base, model_max_length=max_length, padding_side="right")
    if version == "qwen_1_5":
        vocabulary = tokenizer.get_vocab()
        lacking = [token for token in ("<|im_start|>", "<|im_end|>") if token not in vocabulary]
        if lacking:
            raise CheckpointError(
                f"the tokenizer of {base} has no {' and no '.join(lacking)}; prompt version qwen_1_5 needs them: take "
                "a Qwen2 base, or --version plain for stage one"
            )
    return tokenizer


def configure(model: ModelArguments, data: DataArguments, training: TrainingArguments) -> VideoXLConfig:
    """The base's configuration, updated by the flags. Raises `CheckpointError`, `ConfigError`, `PictureError`."""
    base = Path(model.model_name_or_path)
    path = base / "config.json"
    if base.exists() and not path.is_file():
        raise CheckpointError(f"{base} is not a model: it has no config.json")
    try:
        config = VideoXLConfig.from_pretrained(str(base))
        kind = json.loads(path.read_text()).get("model_type") if path.is_file() else None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read the configuration of {base}: {error}") from error
    if kind not in ("qwen2", VideoXLConfig.model_type, None):
        raise CheckpointError(f"{base} holds a {kind!r} model; training starts from a Qwen2 or a Video-XL one")
    for name in _CONFIGURED:
        value = getattr(model, name)
        if value is not None:
            setattr(config, name, value)
    if model.beacon_stride is None:
        config.beacon_stride = config.beacon_window
    config.enable_beacon = model.enable_beacon and not training.pretrain
    if training.pretrain and model.mm_patch_merge_type is None:
        config.mm_patch_merge_type = "flat"
    if model.vision_tower is not None and kind != VideoXLConfig.model_type:
        config.mm_vision_tower, config.mm_vision_config = model.vision_tower, None
    found = tower_class(config)
    side = (config.mm_vision_config or {}).get("image_size", 224)
    if config.mm_vision_config is None and found is not None:
        found.complete(config, base)
        with torch.device("meta"):
            tower = found.build(config)
        config.mm_hidden_size, side = tower.hidden_size, tower.image_size
    if data.image_aspect_ratio is not None:
        config.image_aspect_ratio = data.image_aspect_ratio
    grids = data.image_grid_pinpoints
    if is_anyres(config) and grids is None and config.image_grid_pinpoints is None:
        grids = "published"
    if grids is not None:
        config.image_grid_pinpoints = [list(grid) for grid in parse_grids(grids, side)]
    config.tokenizer_model_max_length = training.model_max_length
    config.tokenizer_padding_side = "right"
    if hasattr(config, "model_note"):
        del config.model_note  # it describes the base, not what is trained from it
    return config


def build_model(
    config: VideoXLConfig, model_arguments: ModelArguments, training: TrainingArguments
) -> LlavaQwenForCausalLM | torch.nn.Module:
    """The model on the CPU (quantised: on the training device), all but the trainable modules frozen; with LoRA,
    wrapped by peft.

    Raises:
        CheckpointError: weights that are missing or do not fit.
    """
    base = model_arguments.model_name_or_path
    wanted = learning_parts(model_arguments)
    with _without_zero_init():
        model, missing = _load(base, config, model_arguments, training)
        if any(key.startswith(_TOWER) for key in missing):
            _fill_tower(model, model_arguments.vision_tower, base)
        if model_arguments.pretrain_mm_mlp_adapter:
            load_projector(model, Path(model_arguments.pretrain_mm_mlp_adapter))
    model.config.use_cache = False
    freeze_others(model, wanted)
    if training.checkpoint_windows:
        enable_checkpointing(model)
    if training.lora_enable:
        return add_adapters(model, training, wanted)
    return model


def _load(base: str, config: VideoXLConfig, model_arguments: ModelArguments, training: TrainingArguments):
    kwargs: dict = {
        "dtype": _stored_dtype(training),
        "attn_implementation": pick_attention(training.attn_implementation),
    }
    if training.bits != 16:
        kwargs["quantization_config"] = _quantization(training)
        kwargs["device_map"] = {"": training.device}
    try:
        model, info = LlavaQwenForCausalLM.from_pretrained(
            base, config=config, may_lack=(_TOWER, _PROJECTOR), output_loading_info=True, **kwargs
        )
    except (OSError, ValueError, RuntimeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"cannot load {base}: {error}") from error
    return model, info["missing_keys"]


def _stored_dtype(training: TrainingArguments) -> torch.dtype:
    """Dtype of the weights in memory: 16 bits with DeepSpeed, quantisation or LoRA, else float32.

    DeepSpeed and quantisation keep float32 copies where they need them; a frozen base under LoRA needs none.
    """
    half = training.deepspeed or training.bits != 16 or training.lora_enable
    return compute_dtype(training) if half else torch.float32


def _quantization(training: TrainingArguments) -> BitsAndBytesConfig:
    if training.bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=_UNQUANTIZED)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_compute_dtype=compute_dtype(training),
        bnb_4bit_quant_type=training.quant_type,
        bnb_4bit_use_double_quant=training.double_quant,
        llm_int8_skip_modules=_UNQUANTIZED,
    )


def _fill_tower(model: LlavaQwenForCausalLM, named: str | None, base: str) -> None:
    if not model.model.vision_tower.has_own_files:
        return  # its weights are part of the checkpoint
    folder = find_tower_folder(model.config, base)
    if folder is None:
        raise CheckpointError(
            f"{base} has no vision tower; name the folder of one with --vision_tower (it is {named!r})"
        )
    model.model.vision_tower.load_weights(folder)


def load_image_processor(config: VideoXLConfig, base: str, tower: VisionTower) -> VideoXLImageProcessor:
    """The preprocessing of the base or of the tower's folder; the tower's default if neither has one."""
    for folder in (Path(base), find_tower_folder(config, base)):
        if folder is not None and (folder / "preprocessor_config.json").is_file():
            return VideoXLImageProcessor.from_pretrained(folder)
    return tower.image_processor()


def check_vocabulary(model: LlavaQwenForCausalLM, tokenizer) -> None:
    size = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > size:
        raise ArgumentError(
            f"the tokenizer has {len(tokenizer)} tokens and the model {size} embeddings; they do not match"
        )


@contextmanager
def _without_zero_init() -> Iterator[None]:
    """Load whole weights in every process, and let DeepSpeed shard them afterwards.

    transformers would shard an empty model first and then fill it; open issues report weights that silently stay at
    their initialisation on that path (huggingface/transformers #45397, #43257); it also could not copy beacon weights.
    """
    from transformers.integrations import deepspeed as integration

    reference = integration._hf_deepspeed_config_weak_ref
    config = reference() if reference is not None else None
    unset_hf_deepspeed_config()
    try:
        yield
    finally:
        if config is not None:
            set_hf_deepspeed_config(config)
