"""Cutting the wanted frames of a video at keyframes into parts that can be decoded by themselves.

Parts do not depend on how many decoders there are, so neither do the frames of a damaged file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from videoxl.media.info import VideoIndex

MOST_FRAMES = 8
"""Wanted frames of a part: 2.7 MB at 336 pixels, so that the first ones arrive at once and memory stays bounded."""
MOST_DECODED = 128
"""Frames to be decoded for a part, after which the next one begins."""


@dataclass(frozen=True)
class Part:
    """Some wanted frames: their numbers and times, and for each the keyframe that decoding starts from.

    `earlier` are keyframes before the first one, nearest first, for frames that cannot be decoded from their own.
    """

    numbers: list[int]
    pts: list[int]
    keyframes: list[int]
    earlier: list[int]

    def rest(self, done: int) -> Part:
        """The part without its first `done` frames."""
        return Part(self.numbers[done:], self.pts[done:], self.keyframes[done:], self.earlier)


def split_first(parts: Sequence[Part]) -> list[Part]:
    """The same parts, but the first frame is one of its own."""
    head = parts[0]
    first = Part(head.numbers[:1], head.pts[:1], head.keyframes[:1], head.earlier)
    return [first, *([head.rest(1)] if len(head.numbers) > 1 else []), *parts[1:]]


def plan_parts(index: VideoIndex, wanted: Sequence[int]) -> list[Part]:
    """Parts of `wanted`, ascending frame numbers of a file with times, in order."""
    numbers = np.asarray(wanted, dtype=np.int64)
    pts = index.pts[numbers]
    places = np.maximum(np.searchsorted(index.keyframes, pts, side="right") - 1, 0)
    first_of_group = np.searchsorted(index.pts, index.keyframes[places])
    parts: list[Part] = []
    start, cost = 0, 0
    for at in range(len(numbers)):
        same = at > start and places[at] == places[at - 1]
        begins = numbers[at - 1] if same else first_of_group[at]
        step = int(numbers[at] - begins) + 1
        full = at - start >= MOST_FRAMES or cost + step > MOST_DECODED
        # A part begins where a new keyframe does: within one group, the frames before would be decoded twice.
        if at > start and not same and full:
            parts.append(_part(index, numbers, pts, places, start, at))
            start, cost = at, 0
        cost += step
    if len(numbers):
        parts.append(_part(index, numbers, pts, places, start, len(numbers)))
    return parts


def decoded_frames(index: VideoIndex, parts: Sequence[Part]) -> int:
    """About how many frames must be decoded for some parts."""
    total = 0
    for part in parts:
        begin = np.searchsorted(index.pts, part.keyframes)
        for at, number in enumerate(part.numbers):
            same = at > 0 and part.keyframes[at] == part.keyframes[at - 1]
            total += number - (part.numbers[at - 1] if same else int(begin[at])) + 1
    return total


def _part(index: VideoIndex, numbers, pts, places, start: int, stop: int) -> Part:
    chosen = slice(start, stop)
    first = int(places[start])
    earlier = [int(index.keyframes[max(first - back, 0)]) for back in (1, 8) if first > 0]
    return Part(numbers[chosen].tolist(), pts[chosen].tolist(), index.keyframes[places[chosen]].tolist(), earlier)
