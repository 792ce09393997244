"""Check before reading whether a video fits on the GPU, and say what would fit if it does not."""

from __future__ import annotations

from videoxl.cache.summary import SummaryCache
from videoxl.compression.base import Compressor
from videoxl.cost.estimate import GIB, SLACK, reading_bytes
from videoxl.cost.shapes import ModelShape
from videoxl.errors import MemoryLimitError

SUGGESTED_RATIOS = (2, 4, 8, 16, 32)


def ensure_fits(
    shape: ModelShape,
    frames: int,
    ratio: int,
    free: int,
    dtype: str = "bfloat16",
    where: str = "the GPU",
    held: int = 0,
    cache: SummaryCache | None = None,
    rows: int = 1,
    may_choose: bool = True,
    compressor: Compressor | None = None,
) -> None:
    """Refuse a video that would run out of memory half-way.

    Args:
        ratio: the smallest one that a window may take.
        free: free bytes. where: name of that device, for the message.
        held: frames of the video that were read before, into `cache`.
        rows: videos of a batch.
        may_choose: whether another ratio can be advised (where nothing is held).

    Raises:
        MemoryLimitError: names what is needed and what is free, and the frames and the ratio that would fit.
        ConfigError: a vision tower whose cost is not known.
    """

    def needed(frames: int, ratio: int) -> int:
        kept, work = reading_bytes(shape, held + frames, ratio, dtype, compressor, rows)
        return int(((growth(cache, kept) if held and cache is not None else kept) + work) * SLACK)

    wanted = needed(frames, ratio)
    if wanted <= free:
        return
    most = _largest(lambda number: needed(number, ratio) <= free, frames)
    higher = [each for each in SUGGESTED_RATIOS if each > ratio and needed(frames, each) <= free]
    ways = [f"{most:,} frames"] if most else []
    ways += [f"ratio {higher[0]}"] if higher and may_choose and not held else []
    advice = f"{' or '.join(ways)} would fit" if ways else "not even one frame would fit: free the GPU, or take another"
    what = f"{rows} videos of {frames:,} frames" if rows > 1 else f"{frames:,} {'more ' if held else ''}frames"
    raise MemoryLimitError(
        f"{what} at ratio {ratio} need {wanted / GIB:.1f} GiB beside the weights, and {free / GIB:.1f} GiB "
        f"are free on {where}; {advice}"
    )


def growth(cache: SummaryCache, wanted: int) -> int:
    """Bytes that a cache needs beyond its own to hold `wanted` bytes: storage grows by copying, a layer at a time."""
    growing = [layer.growing for layer in cache.layers]  # a prefix that rows share stays where it is
    have = sum(layer.allocated_bytes for layer in growing)
    wanted -= cache.num_bytes - sum(part.numel() * part.element_size() for layer in growing for part in layer.stored)
    if any(layer.is_shared for layer in growing):  # the old storage stays with its other holders
        return wanted + wanted // 8
    return 0 if wanted <= have else wanted + wanted // 8 - have + have // len(growing)


def _largest(fits, limit: int) -> int:
    """The largest number below `limit` that fits, 0 if none does."""
    low, high = 0, limit
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
