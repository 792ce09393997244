"""The result of a question: the text, and the frames and numbers it is based on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple


class FrameTime(NamedTuple):
    """A frame that was read: its number in the file (-1 if unknown) and its second (NaN if unknown)."""

    index: int  # type: ignore[assignment]  # hides `tuple.index` on purpose
    second: float


@dataclass(frozen=True)
class Answer:
    """An answer and its statistics.

    Attributes:
        text: the answer, without special tokens and surrounding space.
        new_tokens: tokens of the answer. prompt_tokens: tokens of the text around the visual input.
        visual_tokens: tokens of the visual input. cached_positions: positions in the cache when the text after the last
            visual input is read.
        ratios: compression ratios used, each once, ascending; 0 keeps every token.
        compressor: the method's name.
        frames: the video frames that were read, in order; empty for pictures.
        seconds: by stage (`decode`, `encode`, `summarise`, `first token`, `answer`).
        peak_memory_bytes: peak since the process started: memory allocated on the GPU (since the last
            `torch.cuda.reset_peak_memory_stats`, if it was called); on the CPU, resident memory of this process.
        notes: sentences to show the user (fewer frames than asked for, a damaged file, ...).
    """

    text: str
    new_tokens: int
    prompt_tokens: int
    visual_tokens: int
    cached_positions: int
    ratios: tuple[int, ...]
    compressor: str
    frames: tuple[FrameTime, ...]
    seconds: dict[str, float]
    peak_memory_bytes: int
    notes: tuple[str, ...] = field(default=())

    def __str__(self) -> str:
        return self.text
