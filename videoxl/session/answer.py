"""What a question gives back: the text, and what it rests on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple


class FrameTime(NamedTuple):
    """A frame that was read: its number in the file (-1 if unknown) and its second (NaN if unknown)."""

    index: int  # type: ignore[assignment]  # `tuple.index` is not wanted here
    second: float


@dataclass(frozen=True)
class Answer:
    """An answer and its numbers.

    Attributes:
        text: without special tokens and surrounding space.
        new_tokens: of the answer. prompt_tokens: of the text around the visual input.
        visual_tokens: that the visual input became. cached_positions: what the text after the last visual input finds
            in the cache.
        ratios: compression ratios that were used, each once, ascending; 0 keeps every token.
        compressor: the method's name.
        frames: the video frames that were read, in order; empty for pictures.
        seconds: by stage (`decode`, `encode`, `summarise`, `first token`, `answer`).
        peak_memory_bytes: the most so far, since the process started: allocated on the GPU (or since
            `torch.cuda.reset_peak_memory_stats`); on the CPU, resident in this process.
        notes: sentences that a user should see (fewer frames than asked for, a damaged file, ...).
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
