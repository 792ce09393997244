"""The compression ratio where a question names none."""

from __future__ import annotations

from videoxl.compression.base import Compressor, get_compressor
from videoxl.model.configuration import VideoXLConfig
from videoxl.model.runner import make_chooser

DEFAULT_RATIO = 8


def pick_ratio(config: VideoXLConfig, ratio: int | None, compressor: str | Compressor | None) -> int | None:
    """The ratio that is asked for, else the checkpoint's if it has exactly one, else 8."""
    if ratio is not None:
        return ratio
    chooser = make_chooser(config, None, compressor=get_compressor(compressor))
    return chooser.ratios[0] if len(chooser.ratios) == 1 else DEFAULT_RATIO
