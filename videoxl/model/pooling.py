"""Spatial pooling of patch features, and how the views of a picture become one row of visual tokens.

Shape letters: F frames or views, P patches in raster order, H hidden size.
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

from videoxl.errors import ConfigError
from videoxl.model.configuration import VideoXLConfig


def pool_patches(features: Tensor, stride: int, mode: str) -> Tensor:
    """Pool a square grid of patches: [F, P, H] -> [F, P / stride^2, H], raster order kept.

    Args:
        mode: `average` or `max`.
    """
    frames, patches, hidden = features.shape
    side = math.isqrt(patches)
    if side * side != patches or side < stride:
        raise ConfigError(
            f"cannot pool {patches} patches with stride {stride}: they must form a square at least as wide"
        )
    if mode == "average" and side % stride == 0:
        # As a mean it keeps nothing for the way back, and needs no other order of axes.
        cells = side // stride
        grid = features.reshape(frames, cells, stride, cells, stride, hidden)
        return grid.mean(dim=(2, 4)).flatten(1, 2)
    grid = features.transpose(1, 2).reshape(frames, hidden, side, side)
    pool = F.avg_pool2d if mode == "average" else F.max_pool2d
    return pool(grid, stride).flatten(2).transpose(1, 2)


def pooled_length(num_patches: int, stride: int) -> int:
    """Tokens that `pool_patches` leaves of a frame."""
    return (math.isqrt(num_patches) // stride) ** 2


def pool_video(features: Tensor, config: VideoXLConfig) -> Tensor:
    """Visual tokens of video frames, concatenated: [F, P, H] -> [F * p, H] (144 a frame in the published geometry)."""
    return pool_patches(features, config.mm_spatial_pool_stride, config.mm_spatial_pool_mode).flatten(0, 1)


def merge_views(features: Tensor, config: VideoXLConfig) -> Tensor:
    """Visual tokens of one picture: [F, P, H] -> [n, H]; view 0 is the whole picture, the others its tiles.

    `unires`: the tiles, each average-pooled 2 x 2, in raster order; a single view as it is. `flat`: all views unpooled.
    """
    if config.mm_patch_merge_type == "flat" or features.shape[0] == 1:
        return features.flatten(0, 1)
    return pool_patches(features[1:], 2, "average").flatten(0, 1)


def visual_length(num_views: int, num_patches: int, modality: str, config: VideoXLConfig) -> int:
    """Visual tokens of a region, known before anything is encoded."""
    if modality == "video":
        return num_views * pooled_length(num_patches, config.mm_spatial_pool_stride)
    if config.mm_patch_merge_type == "flat" or num_views == 1:
        return num_views * num_patches
    return (num_views - 1) * pooled_length(num_patches, 2)
