"""Whether a video fits on the GPU, known before it is read, and what would fit where it does not."""

from __future__ import annotations

import torch

from videoxl.errors import ConfigError, MemoryLimitError
from videoxl.estimate import BYTES, GIB, SLACK, reading_bytes

SUGGESTED_RATIOS = (2, 4, 8, 16, 32)


def check_fits(
    model, frames: int, ratio: int | None = None, free: int | None = None, held: int = 0, rows: int = 1
) -> None:
    """Refuse a video that would run out of memory half-way.

    Args:
        model: on one device; a model spread over several, on the CPU, or with a tower of unknown cost is not checked.
        ratio: None: the smallest one that the configuration draws.
        free: bytes to be had; None: what the model's GPU has left, PyTorch's own reserve included.
        held: frames of the video that are in memory already, at the same ratio.
        rows: videos of a batch.

    Raises:
        MemoryLimitError: names what is needed and what is free, and the frames and the ratio that would fit.
    """
    device = model.model.input_device
    if free is None:
        if device.type != "cuda" or len(set((getattr(model, "hf_device_map", None) or {"": 0}).values())) > 1:
            return
        reserve = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        free = torch.cuda.mem_get_info(device)[0] + reserve
    config, dtype = model.config, str(model.model.vision_tower.dtype).removeprefix("torch.")
    ratios = [ratio] if ratio is not None else config.active_ratios
    if dtype not in BYTES or not all(ratios):  # without compression everything is kept, and nothing is planned
        return
    ratio = min(ratios)

    def needed(frames: int, ratio: int) -> int:
        cache, work = reading_bytes(config, held + frames, ratio, dtype)
        if held:
            cache -= reading_bytes(config, held, ratio, dtype)[0]
        return int((cache * rows + work) * SLACK)

    try:
        wanted = needed(frames, ratio)
    except ConfigError:
        return
    if wanted <= free:
        return
    most = _largest(lambda number: needed(number, ratio) <= free, frames)
    higher = [] if held else [each for each in SUGGESTED_RATIOS if each > ratio and needed(frames, each) <= free]
    ways = [f"{most:,} frames"] if most else []
    ways += [f"ratio {higher[0]}"] if higher else []
    advice = f"{' or '.join(ways)} would fit" if ways else "not even one frame would fit: free the GPU, or take another"
    what = f"{rows} videos of {frames:,} frames" if rows > 1 else f"{frames:,} {'more ' if held else ''}frames"
    raise MemoryLimitError(
        f"{what} at ratio {ratio} need {wanted / GIB:.1f} GiB beside the weights, and {free / GIB:.1f} GiB "
        f"are free on {device}; {advice}"
    )


def _largest(fits, limit: int) -> int:
    """The largest number below `limit` that fits, 0 if none does."""
    low, high = 0, limit
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
