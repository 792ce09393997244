"""Masks that pictures are composed of: shapes, blobs, bars, digits, letters.

A glyph is an opacity [SIDE, SIDE] between 0 and 1 that fills its square.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

SIDE = 64
_FINE = 4  # samples a side of one value of a mask

SHAPES = (
    "circle",
    "square",
    "triangle",
    "star",
    "cross",
    "heart",
    "ring",
    "diamond",
    "crescent",
    "arrow",
    "hourglass",
    "bolt",
)
DIGITS = tuple("0123456789")
LETTERS = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
NAMES = (*SHAPES, "blob", "bar", *DIGITS, *LETTERS)
NUMBER = {name: place for place, name in enumerate(NAMES)}


@lru_cache(maxsize=1)
def glyph_masks() -> Tensor:
    """All glyphs in the order of `NAMES`, [len(NAMES), SIDE, SIDE] float32."""
    masks = [_shape(name) for name in SHAPES]
    masks += [_blob(), np.ones((SIDE, SIDE))]
    masks += [_character(name) for name in (*DIGITS, *LETTERS)]
    return torch.from_numpy(np.stack(masks).astype(np.float32))


@lru_cache(maxsize=1)
def grain() -> Tensor:
    """Noise table for textures, [SIDE, SIDE] float32 between -1 and 1; the same on every device."""
    return torch.from_numpy(np.random.default_rng(7).uniform(-1, 1, (SIDE, SIDE)).astype(np.float32))


def _plane() -> tuple[np.ndarray, np.ndarray]:
    """x to the right and y downwards, both from -1 to 1, finer than a mask."""
    line = (np.arange(SIDE * _FINE) + 0.5) / (SIDE * _FINE) * 2 - 1
    y, x = np.meshgrid(line, line, indexing="ij")
    return x, y


def _shape(name: str) -> np.ndarray:
    x, y = _plane()
    radius = np.hypot(x, y)
    inside: dict[str, Callable[[], np.ndarray]] = {
        "circle": lambda: radius < 0.95,
        "square": lambda: np.maximum(abs(x), abs(y)) < 0.85,
        "triangle": lambda: (y < 0.85) & (abs(x) < (y + 0.95) * 0.55),
        "star": lambda: _star(x, y),
        "cross": lambda: (np.minimum(abs(x), abs(y)) < 0.3) & (np.maximum(abs(x), abs(y)) < 0.95),
        "heart": lambda: _heart(x, y),
        "ring": lambda: (radius < 0.95) & (radius > 0.55),
        "diamond": lambda: abs(x) * 1.4 + abs(y) < 0.97,
        "crescent": lambda: (radius < 0.95) & (np.hypot(x - 0.5, y) > 0.75),
        "arrow": lambda: ((y < 0.1) & (abs(x) < y + 0.95)) | ((y >= 0.1) & (y < 0.95) & (abs(x) < 0.25)),
        "hourglass": lambda: (abs(x) < abs(y) * 0.85 + 0.08) & (abs(y) < 0.95),
        "bolt": lambda: _bolt(x, y),
    }
    return _smooth(inside[name]())


def _star(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Five points: between two of them the edge is a straight line."""
    angle = np.arctan2(x, -y) % (2 * np.pi / 5)
    angle = np.minimum(angle, 2 * np.pi / 5 - angle)
    outer, inner, turn = 0.97, 0.42, np.pi / 5
    edge = outer * inner * np.sin(turn) / (inner * np.sin(turn - angle) + outer * np.sin(angle))
    return np.hypot(x, y) < edge


def _bolt(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A slanted bar, broken in the middle: the lower half starts further right."""
    middle = np.where(y < 0.1, -0.55 * y - 0.2, -0.55 * y + 0.3)
    return (abs(x - middle) < 0.3) & (abs(y) < 0.95)


def _heart(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The curve (x² + y² - 1)³ = x² y³, scaled into the square."""
    x, y = x * 1.2, 0.15 - y * 1.2
    return (x**2 + y**2 - 1) ** 3 < x**2 * y**3


def _blob() -> np.ndarray:
    x, y = _plane()
    return _smooth(np.exp(-4 * (x**2 + y**2)) * (np.hypot(x, y) < 1))


def _character(name: str) -> np.ndarray:
    size = SIDE * _FINE
    picture = Image.new("L", (size, size))
    font = ImageFont.load_default(size=int(size * 0.95))
    ImageDraw.Draw(picture).text((size / 2, size / 2), name, 255, font, anchor="mm", stroke_width=size // 40)
    return _smooth(np.asarray(picture) / 255.0)


def _smooth(fine: np.ndarray) -> np.ndarray:
    return fine.astype(np.float64).reshape(SIDE, _FINE, SIDE, _FINE).mean(axis=(1, 3))
