"""Check whether a model's GPU has room for a video."""

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
    """`ensure_fits` for a model on one GPU. No check for several GPUs, the CPU, or a tower of unknown cost.

    Args:
        ratio: the smallest one that a window may take; 0, which keeps everything, is not checked.
        free: free bytes; None: those of the model's GPU, PyTorch's own reserve included.

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
