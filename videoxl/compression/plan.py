"""The window plan: which visual tokens are read in which window, at which ratio. Integers only, for every compressor.

A visual span of `n` tokens is cut into windows of `beacon_window` tokens. In a window with compression ratio `r`
every `r` tokens make a group; tokens left over at its end belong to a group that the next window fills (paper
section 3.2).
Everything here is a pure function of integers, or a small object whose state is integers, so it can be tested
exhaustively and read without knowing the model.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from videoxl.errors import PlanError

RATIO_MIXES = ("step-random", "instance-random", "sequence", "adapt-N")


@dataclass(frozen=True)
class Window:
    """One window of a visual span: the tokens it reads, cut into groups of `ratio`.

    Attributes:
        start, stop: the visual tokens read, as a half-open range counted from the start of the visual span.
        ratio: visual tokens a group; 0 keeps every token and makes no group.
        remainder: tokens of earlier windows whose group is not full yet.
    """

    start: int
    stop: int
    ratio: int
    remainder: int

    @property
    def num_tokens(self) -> int:
        return self.stop - self.start

    @property
    def num_groups(self) -> int:
        """Groups that become full in this window."""
        return (self.num_tokens + self.remainder) // self.ratio if self.ratio else 0

    @property
    def remainder_after(self) -> int:
        return (self.num_tokens + self.remainder) % self.ratio if self.ratio else self.remainder

    def group_spans(self) -> list[tuple[int, int]]:
        """The visual tokens of each full group, as a half-open range of the visual span (earlier windows' included)."""
        first = self.start - self.remainder
        return [(first + j * self.ratio, first + (j + 1) * self.ratio) for j in range(self.num_groups)]


class RatioChooser:
    """Draws the compression ratio of each window: besides the remainder, the only state of a plan.

    See docs/explanation/compressor.md for the rules.

    Args:
        ratios: candidate ratios. One is used as it is; of several, 0 and those that divide `window`.
        mix: `step-random` (one draw a window), `instance-random` (one draw a sequence), `sequence` (in turn) or
            `adapt-N` (the smallest ratio that reaches the whole sequence plus N tokens).
        window: visual tokens in a full window.
        max_positions: `max_position_embeddings`, for `adapt-N`.
        sequence_length: tokens of the whole expanded prompt, for `adapt-N`; None where it is not known.
        seed: seed of the draws. Inference always starts from 42, the published seed, so that an answer does not
            depend on earlier questions.
    """

    def __init__(
        self,
        ratios: Sequence[int],
        mix: str,
        window: int,
        max_positions: int,
        sequence_length: int | None = None,
        seed: int | Sequence[int] = 42,
    ):
        self.ratios = check_ratios(ratios, window)
        self.mix = mix
        self.window = window
        self.max_positions = max_positions
        self.sequence_length = sequence_length
        self._rng = np.random.default_rng(seed)
        self._fixed: int | None = self.ratios[0] if len(self.ratios) == 1 else None
        self._drawn = 0

    def next(self) -> int:
        """The ratio of the next window."""
        self._drawn += 1
        if self._fixed is not None:
            return self._fixed
        if self.mix == "step-random":
            return int(self._rng.choice(self.ratios))
        if self.mix == "sequence":
            return self.ratios[(self._drawn - 1) % len(self.ratios)]
        if self.mix == "instance-random":
            self._fixed = int(self._rng.choice(self.ratios))
        elif self.mix.startswith("adapt-") and self.mix[len("adapt-") :].isdigit():
            self._fixed = self._smallest_that_reaches(int(self.mix[len("adapt-") :]))
        else:
            raise PlanError(f"beacon_ratio_mix is {self.mix!r}; use one of {', '.join(RATIO_MIXES)}")
        return self._fixed

    def least(self) -> int:
        """The smallest ratio that a window from here on may take; 0 where one may keep everything."""
        if self._fixed is None and self.mix in ("step-random", "sequence"):
            return min(self.ratios)
        return self.fork().next()  # one for the whole sequence

    def fork(self) -> RatioChooser:
        """A copy that draws the same ratios from here on, without moving this one."""
        return copy.deepcopy(self)

    def _smallest_that_reaches(self, extra: int) -> int:
        if self.sequence_length is None:
            raise PlanError(
                f"beacon_ratio_mix {self.mix!r} needs the length of the whole sequence, which a growing video memory "
                "does not have; name one ratio instead"
            )
        reach = {
            ratio: (self.max_positions - self.window) * ratio + self.window if ratio else self.max_positions
            for ratio in self.ratios
        }
        fitting = [ratio for ratio in self.ratios if reach[ratio] >= self.sequence_length + extra]
        return min(fitting, key=reach.__getitem__) if fitting else max(self.ratios)


def check_ratios(ratios: Sequence[int], window: int) -> list[int]:
    """The ratios that can be drawn. Raises `PlanError` where there is none."""
    ratios = list(ratios)
    if not ratios:
        raise PlanError("beacon_ratio is empty; give at least one ratio, such as [8]")
    for ratio in ratios:
        if not isinstance(ratio, (int, np.integer)) or isinstance(ratio, bool) or ratio < 0:
            raise PlanError(f"compression ratio {ratio!r} is not a whole number of at least 0 (0 keeps every token)")
        if ratio > window:
            raise PlanError(f"compression ratio {ratio} is larger than the window of {window} tokens; use at most that")
    if len(ratios) == 1:
        return [int(ratios[0])]
    valid = [int(ratio) for ratio in ratios if ratio == 0 or window % ratio == 0]
    if not valid:
        raise PlanError(f"none of the compression ratios {ratios} divides the window of {window} tokens")
    return valid


class SpanPlanner:
    """Hands out the windows of one visual span in order, even while the span still grows."""

    def __init__(self, window: int, chooser: RatioChooser):
        if window < 1:
            raise PlanError(f"beacon_window is {window}; it must be at least 1")
        self.window = window
        self.chooser = chooser
        self.position = 0
        self.remainder = 0

    def next_window(self, available: int) -> Window:
        """The next window, given `available` tokens of the visual span after `position`."""
        if available < 1:
            raise PlanError(f"a window needs at least one visual token, {available} are there")
        window = Window(self.position, self.position + min(self.window, available), self.chooser.next(), self.remainder)
        self.position = window.stop
        self.remainder = window.remainder_after
        return window

    def fork(self) -> SpanPlanner:
        """A copy that plans on from here without moving this one."""
        other = copy.copy(self)
        other.chooser = self.chooser.fork()
        return other


def group_windows(windows: Sequence[Window], limit: int) -> Iterator[tuple[Window, ...]]:
    """Groups of windows to read together, at most `limit` each; a window with ratio 0 is read by itself, like text."""
    group: list[Window] = []
    for window in windows:
        if group and (len(group) == limit or not window.ratio or not group[-1].ratio):
            yield tuple(group)
            group = []
        group.append(window)
    if group:
        yield tuple(group)


def plan_span(num_tokens: int, window: int, chooser: RatioChooser) -> Iterator[Window]:
    """All windows of a visual span of `num_tokens` visual tokens."""
    planner = SpanPlanner(window, chooser)
    while planner.position < num_tokens:
        yield planner.next_window(num_tokens - planner.position)
