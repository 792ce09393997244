"""lmms-eval's `--model_args` for this model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from videoxl.chat import check_template
from videoxl.errors import ConfigError
from videoxl.media.choice import FrameChoice


@dataclass(frozen=True)
class LmmsArguments:
    """One attribute for each name that `--model_args` takes.

    Attributes:
        pretrained: checkpoint folder. device_map, device, dtype, attn_implementation: how it is loaded.
        max_frames_num: frames per video, evenly spaced; fps: frames per second instead, at most `max_frames_num`.
        beacon_ratio: one compression ratio for every video, so that scores are reproducible. compressor: how
            visual tokens are compressed (`beacon`, `drop`, `mean`, `none`, or a registered one).
        sampling: `uniform`, or `keyframes`. stored_shape: keep pixels that are not square as they are stored, as the
            published reader does.
        memory_cache_gb: most GiB of video memories to keep on the device.
        video_decode_backend: `pyav`, `nvdec`, `auto`, `decord` or `torchcodec`.
        decode_timeout: most seconds without a frame.
        strict: exit with status 1 after the results are written if an input could not be read.
        conv_template, customized_config, mm_spatial_pool_stride, mm_spatial_pool_mode: as published.
        model_name, truncation, truncate_context, use_cache, max_batch_size: accepted because the published command
            lines use them, but ignored.
    """

    pretrained: str = ""
    device: str | None = None
    device_map: str | None = None
    batch_size: int | str | None = 1
    max_batch_size: int | str | None = None
    model_name: str | None = None
    dtype: str = "auto"
    attn_implementation: str | None = None
    conv_template: str = "qwen_1_5"
    customized_config: str | None = None
    max_frames_num: int = 128
    fps: float | None = None
    beacon_ratio: int | str = 8
    compressor: str | None = None
    mm_spatial_pool_stride: int | None = None
    mm_spatial_pool_mode: str | None = None
    video_decode_backend: str = "pyav"
    decode_timeout: float = 60.0
    memory_cache_gb: float = 4.0
    sampling: str = "uniform"
    stored_shape: bool = True
    token_strategy: str = "single"
    truncation: bool = True
    truncate_context: bool = False
    use_cache: bool = True
    strict: bool = False

    @classmethod
    def parse(cls, given: Mapping[str, Any]) -> LmmsArguments:
        """From the keyword arguments that lmms-eval makes. Raises `ConfigError` for an unknown name or value."""
        unknown = given.keys() - {field.name for field in fields(cls)}
        if unknown:
            raise ConfigError(f"--model_args: {', '.join(sorted(unknown))} is not known; see {cls.__module__}")
        switches = {field.name for field in fields(cls) if field.type == "bool"}
        arguments = cls(**{name: _switch(name, value) if name in switches else value for name, value in given.items()})
        if not arguments.pretrained:
            raise ConfigError("--model_args lacks pretrained=CHECKPOINT")
        if arguments.token_strategy != "single":
            raise ConfigError(
                f"token_strategy={arguments.token_strategy!r}: a video has one placeholder here; leave it out"
            )
        if str(arguments.batch_size or 1) != "1":
            raise ConfigError(f"batch_size {arguments.batch_size}: questions share their video, not a batch; give 1")
        check_template(arguments.conv_template)
        return arguments

    @property
    def choice(self) -> FrameChoice:
        """Which frames of a video are read."""
        shape = {"sampling": self.sampling, "stored_shape": self.stored_shape}
        if self.fps is None:
            return FrameChoice(self.max_frames_num, **shape)
        return FrameChoice(fps=self.fps, max_frames=self.max_frames_num, **shape)

    @property
    def overwrite_config(self) -> dict[str, Any]:
        """Settings that replace the checkpoint's."""
        names = ("mm_spatial_pool_stride", "mm_spatial_pool_mode")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


def _switch(name: str, value: Any) -> bool:
    """`no` is text for lmms-eval, and would count as yes."""
    if isinstance(value, bool):
        return value
    found = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}.get(str(value).lower())
    if found is None:
        raise ConfigError(f"--model_args: {name}={value}: give True or False")
    return found
