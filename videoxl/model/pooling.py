"""Spatial pooling of patch features.

Shape letters: F frames or views, P patches in raster order, H hidden size.
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

from videoxl.errors import ConfigError


def pool_patches(features: Tensor, stride: int, mode: str) -> Tensor:
    """Pool a square grid of patches: [F, P, H] -> [F, (sqrt(P) // stride)^2, H], raster order kept.

    Args:
        mode: `average` or `max`.

    Raises:
        ConfigError: the patches form no square, or one narrower than `stride`.
    """
    frames, patches, hidden = features.shape
    side = math.isqrt(patches)
    if side * side != patches or side < stride:
        raise ConfigError(
            f"cannot pool {patches} patches with stride {stride}: they must form a square at least as wide"
        )
    if mode == "average" and side % stride == 0:
        # A mean saves no activations for the backward pass and needs no permutation of axes.
        cells = side // stride
        grid = features.reshape(frames, cells, stride, cells, stride, hidden)
        return grid.mean(dim=(2, 4)).flatten(1, 2)
    grid = features.transpose(1, 2).reshape(frames, hidden, side, side)
    pool = F.avg_pool2d if mode == "average" else F.max_pool2d
    return pool(grid, stride).flatten(2).transpose(1, 2)


def pooled_length(num_patches: int, stride: int) -> int:
    """Tokens that `pool_patches` leaves of a frame."""
    return (math.isqrt(num_patches) // stride) ** 2
