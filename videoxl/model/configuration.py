"""The keys of a checkpoint's `config.json`: Qwen2's plus `beacon_*`, `mm_*` and `image_*`."""

from __future__ import annotations

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import Qwen2Config

from videoxl.errors import ConfigError

# Values of the published family's keys that Video-XL itself uses. The others belong to methods it does not contain.
_REQUIRED = {
    "beacon_attn": ("full-coverage",),
    "beacon_pos": ("interleave",),
    "beacon_attend_prev": (True,),
    "beacon_sink_size": (0,),
    "beacon_parallel_window": (1,),
    "beacon_embed_init": ("eos",),
    "mm_vision_select_feature": ("patch",),
    "mm_spatial_pool_mode": ("average", "max"),
    "mm_patch_merge_type": ("unires", "flat"),
    "use_sliding_window": (False,),
    "mm_use_im_start_end": (False,),
}
_BEACON_PARAMS = ("q", "k", "v", "o", "mlp")


@strict
class VideoXLConfig(Qwen2Config):
    """Configuration of `LlavaQwenForCausalLM`.

    The names are those of the published checkpoints. `mm_vision_config` is this project's addition: the vision
    tower's own configuration, so that a checkpoint with a tower of another shape is self-contained.
    """

    model_type = "llava_qwen"

    enable_beacon: bool = True
    beacon_window: int = 1440
    beacon_stride: int = 1440
    beacon_attn: str = "full-coverage"
    beacon_attend_prev: bool = True
    beacon_pos: str = "interleave"
    beacon_param: list[str] | tuple[str, ...] = ("q", "k", "v")
    beacon_ratio: list[int] | tuple[int, ...] = (8,)
    beacon_ratio_mix: str = "step-random"
    beacon_embed_init: str = "eos"
    beacon_sink_size: int = 0
    beacon_parallel_window: int = 1

    mm_vision_tower: str | None = "openai/clip-vit-large-patch14-336"
    mm_vision_config: dict[str, Any] | None = None
    mm_vision_select_layer: int = -2
    mm_vision_select_feature: str = "patch"
    mm_projector_type: str = "mlp2x_gelu"
    mm_hidden_size: int = 1024
    mm_spatial_pool_stride: int = 2
    mm_spatial_pool_mode: str = "average"
    mm_patch_merge_type: str = "unires"
    mm_use_im_start_end: bool = False
    image_aspect_ratio: str | None = "anyres"
    image_grid_pinpoints: list[Any] | str | None = None

    @property
    def active_ratios(self) -> list[int]:
        """The ratios that a plan draws from: only 0 if compression is switched off."""
        return list(self.beacon_ratio) if self.enable_beacon else [0]


def check_config(config: VideoXLConfig) -> None:
    """Raise `ConfigError` where the configuration asks for a method that Video-XL does not contain."""
    for key, allowed in _REQUIRED.items():
        value = getattr(config, key)
        if value not in allowed:
            raise ConfigError(f"config key {key!r} is {value!r}; the values that work are {_either(allowed)}")
    unknown = [name for name in config.beacon_param if name not in _BEACON_PARAMS]
    if unknown:
        raise ConfigError(f"config key 'beacon_param' holds {unknown}; it may hold {list(_BEACON_PARAMS)}")
    if config.beacon_stride != config.beacon_window:
        raise ConfigError(
            f"config key 'beacon_stride' is {config.beacon_stride} and 'beacon_window' is {config.beacon_window}; "
            "they must be equal"
        )


def _either(values: tuple) -> str:
    return " or ".join(repr(value) for value in values)
