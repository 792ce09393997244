"""CLIP's resize and centre crop of one frame with Pillow. Kept free of torch, for the decoder process.

Shape letters: H height, W width, S side of the model's input.
"""

from __future__ import annotations

import numpy as np
from PIL import Image


def shorter_side_to(height: int, width: int, side: int) -> tuple[int, int]:
    """(height, width) scaled so that the shorter side is `side`; the other is rounded down, as CLIP does."""
    if height <= width:
        return side, int(side * width / height)
    return int(side * height / width), side


def resize_and_crop_frame(frame: np.ndarray, side: int) -> np.ndarray:
    """uint8 [H, W, 3] -> uint8 [S, S, 3]: shorter side to S (bicubic), centre crop."""
    height, width = shorter_side_to(frame.shape[0], frame.shape[1], side)
    top, left = (height - side) // 2, (width - side) // 2
    picture = Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(picture.crop((left, top, left + side, top + side)))
