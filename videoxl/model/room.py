"""Whether the GPU that a model lies on has room for a video."""

from __future__ import annotations

import torch

from videoxl.cache.summary import SummaryCache
from videoxl.compression.base import Compressor
from videoxl.cost.estimate import BYTES
from videoxl.cost.fit import ensure_fits
from videoxl.model.shape import model_shape


def ensure_room(
    model,
    frames: int,
    ratio: int,
    held: int = 0,
    cache: SummaryCache | None = None,
    rows: int = 1,
    may_choose: bool = True,
    compressor: Compressor | None = None,
    free: int | None = None,
) -> None:
    """`ensure_fits` for a model on one GPU; one that is spread over several, or has a tower of unknown cost, passes.

    Args:
        ratio: the smallest one that a window may take; 0, which keeps everything, is not checked.
        free: bytes to be had; None: what the model's GPU has left, PyTorch's own reserve included.

    Raises:
        MemoryLimitError: see `ensure_fits`.
    """
    device = model.model.input_device
    if free is None:
        if device.type != "cuda" or len(set((getattr(model, "hf_device_map", None) or {"": 0}).values())) > 1:
            return
        reserve = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        free = torch.cuda.mem_get_info(device)[0] + reserve
    dtype, shape = str(model.model.vision_tower.dtype).removeprefix("torch."), model_shape(model.config)
    if dtype in BYTES and ratio and shape.tower is not None:
        ensure_fits(shape, frames, ratio, free, dtype, str(device), held, cache, rows, may_choose, compressor)
