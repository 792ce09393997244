"""How much is read at once: frames through the tower, windows through the decoder's layers."""

from __future__ import annotations

import torch

FRAMES_PER_CHUNK = {"cpu": 8, "cuda": 40}
"""Frames that go through the vision tower at once. Larger gives nothing: a ViT-L layer is full with 20 frames."""

VIT_L_WIDTH = 1024

ELEMENTS_AT_ONCE = 4 * 1440 * 18_944
"""Of the MLP's middle in one layer: four windows of a 7B model, as many as a chunk of frames fills; 0.2 GB of bf16."""


def frames_at_once(device: torch.device, tower_width: int) -> int:
    """Frames for one pass: more where a tower is narrower than the one that `FRAMES_PER_CHUNK` was measured on."""
    return FRAMES_PER_CHUNK.get(device.type, 8) * max(1, VIT_L_WIDTH // tower_width)


def windows_at_once(window: int, intermediate_size: int, rows: int, elements: int = ELEMENTS_AT_ONCE) -> int:
    """Windows that go through the layers together, for that many rows of a batch.

    Args:
        window: visual tokens of one.
        elements: of the MLP's middle, at most.
    """
    return max(1, elements // (rows * window * intermediate_size))
