"""The positions of beacons in a window: after every `ratio` visual tokens, counted across windows of a visual span.

Published code: `modeling_beacon.py`, `beacon_pos = "interleave"`; paper section 3.2.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from videoxl.compression.plan import Window
from videoxl.compression.rows import RowPlan


def token_positions(window: Window) -> list[int]:
    """Position of each visual token in the window's interleaved sequence."""
    if not window.ratio:
        return list(range(window.num_tokens))
    return [i + (i + window.remainder) // window.ratio for i in range(window.num_tokens)]


def beacon_positions(window: Window) -> list[int]:
    """Position of each beacon in the window's interleaved sequence."""
    return [(j + 1) * window.ratio - window.remainder + j for j in range(window.num_groups)]


@lru_cache(maxsize=16)
def beacon_rows(windows: tuple[tuple[int, int, int], ...]) -> RowPlan:
    """The rows of windows (tokens, ratio, remainder): visual tokens pass through, beacons stay.

    Cached for the next chunk: with one ratio, most chunks of a video have the same rows.
    """
    return RowPlan.interleave([_places(*window) for window in windows], own_projections=True)


@lru_cache(maxsize=256)
def _places(num_tokens: int, ratio: int, remainder: int) -> tuple[np.ndarray, np.ndarray]:
    window = Window(0, num_tokens, ratio, remainder)
    return np.array(token_positions(window), dtype=np.int64), np.array(beacon_positions(window), dtype=np.int64)
