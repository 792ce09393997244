"""Choose the frames of a video to read: a pure function of their times. Free of torch and of decoders."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from videoxl.errors import VideoError
from videoxl.utils.numbers import is_number, is_whole_number

if TYPE_CHECKING:
    from videoxl.media.info import VideoInfo


SAMPLINGS = ("uniform", "keyframes")

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
        start, end: interval in seconds, `end` excluded; None as `end`: to the end of the file. The frame that is on the
            screen at `start` is part of it.
        sampling: `uniform` (as above), or `keyframes`: for each of them the keyframe nearest in time, each once.
        stored_shape: keep pixels that are not square as they are stored, as the published reader does; otherwise
            frames are stretched to be shown.
    """

    num_frames: int | None = None
    fps: float | None = None
    max_frames: int | None = None
    start: float = 0.0
    end: float | None = None
    by_average_rate: bool = False
    sampling: str = "uniform"
    stored_shape: bool = False

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
        if self.sampling not in SAMPLINGS:
            raise VideoError(f"sampling is {self.sampling!r}; use {' or '.join(SAMPLINGS)}")
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
        inside = self._inside(info)
        if self.fps is not None and self.by_average_rate:
            chosen = self._by_average_rate(info, inside)
        elif self.fps is not None:
            chosen = self._shown_at_moments(info.timestamps, inside, self.fps)
        else:
            chosen = _uniform(inside, self.num_frames or len(inside))
        if self.max_frames is not None and len(chosen) > self.max_frames:
            chosen = _uniform(inside, self.max_frames)
        return _nearest_keyframes(info, chosen, inside) if self.sampling == "keyframes" else chosen

    def _inside(self, info: VideoInfo) -> np.ndarray:
        """Frames that are on the screen at some time of the interval: the first one may have begun before it."""
        times = info.timestamps
        end = np.inf if self.end is None else self.end
        if self.start >= info.duration:
            raise VideoError(f"{info.path} has no frame {self._interval()}; it is {info.duration:.2f} s long")
        first = int(np.searchsorted(times, self.start + _ROUNDING, side="right")) - 1
        stop = int(np.searchsorted(times, end, side="left"))
        return np.arange(max(first, 0), max(stop, first + 1))

    def _shown_at_moments(self, times: np.ndarray, inside: np.ndarray, fps: float) -> np.ndarray:
        """The frames on the screen at start, start + 1 / fps, ..., up to the last frame's time.

        Found frame by frame, not moment by moment: a late time would make billions of moments.
        """
        begins, last = times[inside], times[inside[-1]]
        ends = np.append(begins[1:], np.inf)
        first = np.maximum(np.ceil((begins - _ROUNDING - self.start) * fps) - 1, 0)
        shown = np.zeros(len(inside), dtype=bool)
        for step in range(3):  # the first moment of a frame, whichever way the division rounds
            moments = self.start + (first + step) / fps
            on_screen = (moments + _ROUNDING >= begins) & (moments + _ROUNDING < ends)
            shown |= on_screen & (moments <= max(last, self.start))
        shown[0] |= begins[0] <= self.start + _ROUNDING or not shown.any()
        return inside[shown]

    def _by_average_rate(self, info: VideoInfo, inside: np.ndarray) -> np.ndarray:
        fps, rate = self.fps or 1.0, info.fps
        if not rate:  # one frame, without a length
            return inside
        moments = max(1, int(info.num_frames / rate * fps))
        if fps >= rate:  # each frame up to the last moment's; a late time would make billions of moments
            return inside[inside <= int((moments - 1) * rate / fps)]
        return np.intersect1d((np.arange(moments) * rate / fps).astype(np.int64), inside)


_ROUNDING = 5e-4  # seconds; half a millisecond forgives rounding of container clocks


def _nearest_keyframes(info: VideoInfo, chosen: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """For each chosen frame the keyframe nearest in time, each once; within the interval, if it holds any."""
    if info.keyframes is None or not len(info.keyframes):
        raise VideoError(f"the keyframes of {info.path} are not known ({'; '.join(info.oddities)}); sample uniformly")
    keyframes = np.intersect1d(info.keyframes, inside)
    keyframes = keyframes if len(keyframes) else info.keyframes
    wanted, times = info.timestamps[chosen], info.timestamps[keyframes]
    after = np.clip(np.searchsorted(times, wanted), 1, max(len(times) - 1, 1))
    before = after - 1
    after = np.minimum(after, len(times) - 1)
    return np.unique(keyframes[np.where(wanted - times[before] <= times[after] - wanted, before, after)])


def _uniform(candidates: np.ndarray, number: int) -> np.ndarray:
    if number >= len(candidates):
        return candidates
    return candidates[np.linspace(0, len(candidates) - 1, number, dtype=int)]
