"""How much is read at once: frames through the tower, windows through the decoder's layers."""

from __future__ import annotations

import torch

FRAMES_PER_CHUNK = {"cpu": 8, "cuda": 40}
"""Frames that go through the vision tower at once. Larger chunks gain nothing: 20 frames fill the GPU in a ViT-L."""

VIT_L_WIDTH = 1024

ELEMENTS_AT_ONCE = 4 * 1440 * 18_944
"""Elements of the MLP's intermediate activations in a layer: a chunk's four windows in a 7B model; 0.2 GB in bf16."""


def frames_at_once(device: torch.device, tower_width: int) -> int:
    """Frames for one pass: more where a tower is narrower than the one that `FRAMES_PER_CHUNK` was measured on."""
    return FRAMES_PER_CHUNK.get(device.type, 8) * max(1, VIT_L_WIDTH // tower_width)


def windows_at_once(window: int, intermediate_size: int, rows: int, elements: int = ELEMENTS_AT_ONCE) -> int:
    """Windows that go through the layers together, for `rows` rows of a batch.

    Args:
        window: visual tokens of one window.
        elements: largest number of elements of the MLP's intermediate activations.
    """
    return max(1, elements // (rows * window * intermediate_size))
