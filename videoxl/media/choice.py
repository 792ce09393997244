"""Choose the frames of a video to read: a pure function of their times. Free of torch and of decoders."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from videoxl.errors import VideoError
from videoxl.utils.numbers import is_number, is_whole_number

if TYPE_CHECKING:
    from videoxl.media.index import VideoInfo


# As errors name them: users know these options by several names.
_NAMES = {"num_frames": "the number of frames", "fps": "fps", "max_frames": "the largest number of frames"}


@dataclass(frozen=True)
class FrameChoice:
    """Which frames of a video to read.

    Attributes:
        num_frames: this many, uniform over the interval (`np.linspace(0, total - 1, n, dtype=int)`, the published
            rule); all of them where there are fewer.
        fps: frames per second instead: those shown at `start + k / fps`.
        by_average_rate: with `fps`, frame `int(k * rate / fps)` instead, k up to the last whole moment, where `rate` is
            the file's average: the rule behind the published VNBench scores.
        max_frames: an upper bound; where more would be chosen, this number is taken uniformly.
        start, end: interval in seconds, `end` excluded; None as `end`: to the end of the file.
    """

    num_frames: int | None = None
    fps: float | None = None
    max_frames: int | None = None
    start: float = 0.0
    end: float | None = None
    by_average_rate: bool = False

    def __post_init__(self):
        if (self.num_frames is None) == (self.fps is None):
            both = "both were given" if self.fps is not None else "neither was given"
            raise VideoError(f"give either a number of frames or fps; {both}")
        for name in ("num_frames", "fps", "max_frames"):
            value = getattr(self, name)
            if value is None:
                continue
            if not (is_number if name == "fps" else is_whole_number)(value):
                kind = "number" if name == "fps" else "whole number"
                raise VideoError(f"{_NAMES[name]} is {value!r}; it must be a {kind}")
            if hasattr(value, "item"):  # numpy's numbers, which the decoder process's request cannot hold
                object.__setattr__(self, name, value.item())
            if not 0 < value < float("inf"):
                raise VideoError(f"{_NAMES[name]} is {value}; it must be above 0")
        for name in ("start", "end"):
            value = getattr(self, name)
            if value is not None and (not is_number(value) or value != value):
                raise VideoError(f"{name} is {value!r}; it must be a number of seconds")
        if self.start < 0 or (self.end is not None and self.end <= self.start):
            raise VideoError(f"no frame can lie {self._interval()}: the interval is empty")

    def _interval(self) -> str:
        return f"from {self.start:g} s on" if self.end is None else f"from {self.start:g} s to {self.end:g} s"

    def indices(self, info: VideoInfo) -> np.ndarray:
        """Frame numbers, ascending, unique: [n] int64. Raises `VideoError` if the interval holds no frame."""
        times = info.timestamps
        inside = np.flatnonzero((times >= self.start) & (times < (np.inf if self.end is None else self.end)))
        if not len(inside):
            raise VideoError(f"{info.path} has no frame {self._interval()}; it is {info.duration:.2f} s long")
        if self.fps is not None and self.by_average_rate:
            numbers = np.arange(max(1, int(len(times) / info.fps * self.fps)))
            chosen = np.intersect1d((numbers * info.fps / self.fps).astype(np.int64), inside)
        elif self.fps is not None:
            last = times[inside[-1]]
            moments = self.start + np.arange(int((last - self.start) * self.fps) + 1) / self.fps
            # The frame on the screen at each moment; half a millisecond forgives rounding of container clocks.
            shown = np.searchsorted(times, moments + 5e-4, side="right") - 1
            chosen = np.unique(np.clip(shown, inside[0], inside[-1]))
        elif self.num_frames is not None:
            chosen = _uniform(inside, self.num_frames)
        else:
            chosen = inside
        if self.max_frames is not None and len(chosen) > self.max_frames:
            chosen = _uniform(inside, self.max_frames)
        return chosen


def _uniform(candidates: np.ndarray, number: int) -> np.ndarray:
    if number >= len(candidates):
        return candidates
    return candidates[np.linspace(0, len(candidates) - 1, number, dtype=int)]
