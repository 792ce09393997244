"""The shape of a sample in integers, known from the index before anything is decoded."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from videoxl.compression.plan import check_ratios
from videoxl.constants import IMAGE_TOKEN_INDEX
from videoxl.errors import DataError
from videoxl.model.configuration import VideoXLConfig


@dataclass(frozen=True)
class SamplePlan:
    """The shape of a sample.

    Attributes:
        texts: tokens before each visual span.
        spans: (kind, visual tokens) of each visual span.
        suffix: tokens after the last visual span, the longest over its questions.
        questions: conversations that share the visual input.
    """

    texts: tuple[int, ...]
    spans: tuple[tuple[str, int], ...]
    suffix: int
    questions: int = 1

    @property
    def key(self) -> tuple:
        """Samples with equal keys can share a batch (docs/explanation/compressor.md)."""
        return self.texts, self.spans, self.questions

    @property
    def num_visual(self) -> int:
        return sum(length for _, length in self.spans)

    @property
    def num_text(self) -> int:
        return sum(self.texts) + self.suffix

    @property
    def length(self) -> int:
        """Tokens of the expanded prompt."""
        return self.num_visual + self.num_text

    def num_windows(self, window: int) -> int:
        return sum(math.ceil(length / window) for _, length in self.spans)

    def num_positions(self, config: VideoXLConfig) -> int:
        """Decoder positions at the smallest ratio that can be drawn; must fit `model_max_length`."""
        ratios = check_ratios(config.active_ratios, config.beacon_window)
        if 0 in ratios:
            return self.length
        # The last window is read whole before it shrinks to its beacons.
        in_window = 0
        if self.spans:
            last = min(config.beacon_window, max(length for _, length in self.spans))
            in_window = max(0, last - self.suffix)
        return self.num_text + sum(math.ceil(length / min(ratios)) for _, length in self.spans) + in_window


def text_shape(encoded: Iterable[tuple[list[int], list[int]]]) -> tuple[list[int], int, int]:
    """`texts`, `suffix` and `questions` of a plan, from a record's conversations as token ids with placeholders."""
    texts: list[int] = []
    suffix = questions = 0
    shared: list[int] | None = None
    for ids, _ in encoded:
        places = [-1, *(place for place, token in enumerate(ids) if token == IMAGE_TOKEN_INDEX)]
        texts = [right - left - 1 for left, right in zip(places, places[1:])]
        before = ids[: places[-1] + 1]
        if shared is not None and before != shared:
            raise DataError("its conversations have different text before the visual input that they share")
        shared = before
        suffix = max(suffix, len(ids) - places[-1] - 1)
        questions += 1
    return texts, suffix, questions
