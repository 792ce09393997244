"""Decoded frames to RGB by the stream's own matrix and range, the same in every version of PyAV.

Versions differ in what they take for granted: before 16, BT.709 was read as BT.601. So both are always passed.
"""

from __future__ import annotations

from typing import Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter

# AVColorSpace -> the coefficients of swscale; what is not tagged is BT.601, as in decord.
_BT601, _BT709, _SMPTE240M, _FCC, _BT2020 = 5, 1, 7, 4, 9
_MATRICES = {1: _BT709, 4: _FCC, 5: _BT601, 6: _BT601, 7: _SMPTE240M, 9: _BT2020, 10: _BT2020}
_LIMITED, _FULL = 1, 2
_FULL_FORMATS = ("yuvj420p", "yuvj422p", "yuvj444p", "yuvj440p", "yuvj411p")


def matrix_of(frame: av.VideoFrame) -> int:
    """swscale's number of the matrix by which the frame becomes RGB."""
    return _MATRICES.get(int(frame.colorspace), _BT601)


def is_full_range(frame: av.VideoFrame) -> bool:
    """Whether black is 0 and white 255, instead of 16 and 235."""
    return int(frame.color_range) == _FULL or frame.format.name in _FULL_FORMATS


class RgbConverter:
    """Converts frames of one stream; keeps swscale's state between them."""

    def __init__(self):
        self._reformatter = VideoReformatter()

    def __call__(self, frame: av.VideoFrame, size: tuple[int, int] | None = None) -> np.ndarray:
        """uint8 [H, W, 3]; `size`: (width, height) to scale to on the way, bicubic."""
        options: dict[str, Any] = (
            {} if size is None else {"width": size[0], "height": size[1], "interpolation": "BICUBIC"}
        )
        if frame.format.is_rgb:
            return self._reformatter.reformat(frame, format="rgb24", **options).to_ndarray()
        full, matrix = is_full_range(frame), matrix_of(frame)
        converted = self._reformatter.reformat(
            frame,
            format="rgb24",
            src_colorspace=matrix,
            dst_colorspace=matrix,
            src_color_range=_FULL if full else _LIMITED,
            # RGB has no limited range here; but where nothing differs, PyAV 15 passes neither matrix nor range on.
            dst_color_range=_LIMITED if full else _FULL,
            **options,
        )
        return converted.to_ndarray()
