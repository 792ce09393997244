"""Times of frames from what a container says, also where it says it wrongly: ascending, from the first frame on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

LARGEST_JUMP = 10.0  # seconds; FFmpeg's own limit for formats whose times may be discontinuous
_REORDERED = 16  # frames; codecs reorder no more, so a larger step back is a new beginning


def repair_times(times: Sequence[float | None], frame_seconds: float, may_jump: bool = False) -> np.ndarray:
    """Seconds of frames in the order in which the decoder gives them.

    Frames that are out of order by a little (a raw stream that was copied into a container) get the sorted times. Times
    that begin again (files that were joined) go on after what came before. A missing time is one frame after the last.

    Args:
        times: seconds as stored; None: missing.
        frame_seconds: a frame's usual length.
        may_jump: whether a gap of more than `LARGEST_JUMP` is a new beginning, as in MPEG-TS, not a long frame.

    Returns:
        float64 [n], ascending, from 0.
    """
    runs: list[list[float]] = [[]]
    latest: float | None = None
    for time in times:
        if time is None:
            time = 0.0 if latest is None else latest + frame_seconds
        elif latest is not None and (
            time < latest - _REORDERED * frame_seconds or (may_jump and time > latest + LARGEST_JUMP)
        ):
            runs.append([])
            latest = None
        runs[-1].append(time)
        latest = time if latest is None else max(latest, time)
    repaired, end = [], 0.0
    for run in filter(None, runs):
        ordered = np.sort(np.asarray(run, dtype=np.float64))
        repaired.append(ordered - ordered[0] + end)
        end = float(repaired[-1][-1]) + frame_seconds
    return np.concatenate(repaired) if repaired else np.zeros(0)


def is_seekable(pts: Sequence[int | None], dts: Sequence[int | None], second: float, may_jump: bool) -> str | None:
    """Why the packets' times cannot be used to find frames; None where they can.

    Args:
        pts, dts: of the packets in file order. second: ticks of one second.
    """
    if any(time is None for time in pts):
        return "packets lack times"
    if len(set(pts)) < len(pts):
        return "times are repeated"
    decoding = np.array([time for time in dts if time is not None], dtype=np.int64)
    steps = np.diff(decoding)
    if (steps < 0).any():
        return "times begin again"
    if may_jump and (steps > LARGEST_JUMP * second).any():
        return "times jump"
    return None
