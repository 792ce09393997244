"""The grid of the published evaluation: haystack lengths, needle depths, and one result file per cell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from videoxl.errors import ArgumentError


def spread(least: int, most: int, number: int) -> list[int]:
    """`number` integers evenly spaced from `least` to `most`, as published. Raises `ArgumentError`."""
    if number < 1 or least > most:
        raise ArgumentError(f"{number} values from {least} to {most} make no grid")
    return np.round(np.linspace(least, most, number)).astype(int).tolist()


def insertion_index(num_frames: int, depth: float) -> int:
    """Number of haystack frames before a needle at `depth` per cent."""
    return int(num_frames * depth / 100)


@dataclass(frozen=True)
class Cell:
    """`length` haystack frames with needles at `depth` per cent."""

    length: int
    depth: int

    def path(self, folder: Path, model_name: str) -> Path:
        """Path of its result file."""
        return folder / f"{model_name}_modality_image_len_{self.length}_depth_{self.depth}_results.json"


def check_grid(lengths: Sequence[int], depths: Sequence[int]) -> None:
    """Raise `ArgumentError` for invalid or missing lengths and depths."""
    for length in lengths:
        if length < 1:
            raise ArgumentError(f"a context length is {length}; a haystack has at least 1 frame")
    for depth in depths:
        if not 0 <= depth <= 100:
            raise ArgumentError(f"a depth is {depth} %; depths must be between 0 and 100")
    if not lengths or not depths:
        raise ArgumentError("the grid is empty; give lengths and depths")
