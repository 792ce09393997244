"""CLIP's resize and centre crop of one frame with Pillow. Kept free of torch, for the decoder process.

Shape letters: H height, W width, S side of the model's input.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

MAX_PIXELS = 178_956_970
"""Largest picture or video frame that is opened: Pillow's own limit for a decompression bomb (16k x 11k)."""

_LONGEST = 8  # long sides, in units of S, up to which a picture is scaled whole, as CLIP's own code does


def shorter_side_to(height: int, width: int, side: int) -> tuple[int, int]:
    """(height, width) scaled so that the shorter side is `side`; the other is rounded down, as CLIP does."""
    if height <= width:
        return side, int(side * width / height)
    return int(side * height / width), side


def scaled_size(height: int, width: int, side: int, stretch: tuple[float, float] = (1.0, 1.0)) -> tuple[int, int]:
    """(height, width) to which a stored frame is scaled before its centre is cut out; `stretch` as below."""
    return shorter_side_to(max(round(height * stretch[0]), 1), max(round(width * stretch[1]), 1), side)


def is_scaled_whole(height: int, width: int, side: int) -> bool:
    """Whether a picture scaled to (height, width) is scaled as a whole; otherwise only what the crop keeps."""
    return max(height, width) <= _LONGEST * side


def resize_and_crop_frame(frame: np.ndarray, side: int, stretch: tuple[float, float] = (1.0, 1.0)) -> np.ndarray:
    """uint8 [H, W, 3] -> uint8 [S, S, 3]: shorter side to S (bicubic), centre crop.

    Args:
        stretch: (vertical, horizontal) factors that make the pixels square.
    """
    height, width = scaled_size(frame.shape[0], frame.shape[1], side, stretch)
    return np.asarray(resize_and_crop(Image.fromarray(frame), height, width, side))


def resize_and_crop(picture: Image.Image, height: int, width: int, side: int) -> Image.Image:
    """A picture scaled to (width, height), of which only the S x S pixels in the centre are kept."""
    top, left = (height - side) // 2, (width - side) // 2
    if is_scaled_whole(height, width, side):
        scaled = picture.resize((width, height), Image.Resampling.BICUBIC)
        return scaled.crop((left, top, left + side, top + side))
    # Nearly a line: what lies outside the crop would take gigabytes. Scaling a box may round a value differently.
    across, down = picture.width / width, picture.height / height
    box = (left * across, top * down, (left + side) * across, (top + side) * down)
    return picture.resize((side, side), Image.Resampling.BICUBIC, box=box)
