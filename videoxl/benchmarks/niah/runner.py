"""One column of the grid: a haystack of one length, with the needle at every depth.

The frames before a needle are the same for all needles at a depth, and they are a prefix of the frames before a deeper
needle. So they are read once and the memory is forked. Frames are encoded once per column.

Shape letters: F frames, t visual tokens of one, H hidden size.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import torch
from torch import Tensor

from videoxl.benchmarks.asking import VideoAsker
from videoxl.benchmarks.niah.grid import Cell, insertion_index
from videoxl.benchmarks.niah.haystack import Haystack
from videoxl.benchmarks.niah.needles import Needle
from videoxl.chat import text_ids
from videoxl.model.memory import VideoMemory
from videoxl.model.visual import frame_tokens

FRAMES_AT_ONCE = 200  # frames whose visual tokens are copied to the device together


@dataclass(frozen=True)
class Placing:
    """The needles in one video: (haystack frames before it, number of the needle), in order; and the one asked for."""

    inserts: tuple[tuple[int, int], ...]
    asked: int


def place(num_frames: int, depth: int, needles: int, at_once: int) -> list[Placing]:
    """One placing per needle: it is asked for at `depth`, and `at_once - 1` others are spread evenly over the video."""
    target = insertion_index(num_frames, depth)
    placings = []
    for asked in range(needles):
        others = [(asked + step) % needles for step in range(1, at_once)]
        spots = [insertion_index(num_frames, 100 * (step + 0.5) / len(others)) for step in range(len(others))]
        inserts = sorted([(target, asked), *zip(spots, others)])
        placings.append(Placing(tuple(inserts), asked))
    return placings


def rest(placing: Placing, read: int, haystack: int) -> list[int]:
    """Numbers of a placing's frames after the first `read` ones; needles are numbered after the `haystack` frames."""
    numbers = []
    for index, needle in placing.inserts:
        numbers += [*range(read, index), haystack + needle]
        read = index
    return [*numbers, *range(read, haystack)]


class ColumnRunner:
    """Runs cells of one length.

    Args:
        at_once: needles in the video; one of them is asked for.
        batch: number of videos that are read together after their common beginning.
    """

    def __init__(
        self,
        asker: VideoAsker,
        haystack: Haystack,
        needles: Sequence[Needle],
        at_once: int = 1,
        max_new_tokens: int = 64,
        batch: int = 1,
    ):
        self.asker, self.haystack, self.needles = asker, haystack, needles
        self.at_once, self.max_new_tokens, self.batch = at_once, max_new_tokens, batch
        self.needle_tokens = torch.cat(
            [self._tokens(needle.pixels(asker.session.image_processor)) for needle in needles]
        )

    def run(self, length: int, depths: Sequence[int], advance: Callable[[int], None]) -> Iterator[tuple[Cell, dict]]:
        """Results of the cells of a column, shallow ones first. `advance` is called after each answer."""
        chunks = self.haystack.chunks(
            length, self.asker.session.image_processor, self.asker.session.model.model.tower.device
        )
        frames = torch.cat([*(self._tokens(chunk) for chunk in chunks), self.needle_tokens])
        base = self._start()
        for depth in sorted(depths):
            started = time.perf_counter()
            placings = place(length, depth, len(self.needles), self.at_once)
            common = min(placing.inserts[0][0] for placing in placings)
            if common < base.num_frames:  # other needles come earlier than at the previous depth
                base = self._start()
            self._read(base, frames, [range(base.num_frames, common)])
            responses = []
            for first in range(0, len(placings), self.batch):
                for response in self._answers(base, frames, placings[first : first + self.batch]):
                    responses.append(response)
                    advance(1)
            yield Cell(length, depth), self._result(length, depth, responses, time.perf_counter() - started)

    def _answers(self, base: VideoMemory, frames: Tensor, placings: Sequence[Placing]) -> Iterator[str]:
        """Answers about the videos of some placings, which are read together after `base`."""
        haystack = len(frames) - len(self.needle_tokens)
        memory = base.fork(len(placings))
        self._read(memory, frames, [rest(placing, base.num_frames, haystack) for placing in placings])
        for number, placing in enumerate(placings):
            prompt = self.needles[placing.asked].prompt
            yield self.asker.ask(memory.row(number), prompt, max_new_tokens=self.max_new_tokens)

    def _start(self) -> VideoMemory:
        session, reading = self.asker.session, self.asker.reading
        prefix = text_ids(session.tokenizer, self.needles[0].prompt.prefix)
        return VideoMemory.start(session.model, prefix, reading.ratio, reading.compressor)

    def _read(self, memory: VideoMemory, frames: Tensor, wanted: Sequence[Sequence[int]]) -> None:
        """Have each row of a memory read its frames; `wanted` are their numbers in `frames`, [rows, F]."""
        for part in torch.tensor([list(row) for row in wanted]).split(max(1, FRAMES_AT_ONCE // len(wanted)), dim=1):
            if part.shape[1]:
                memory.extend_tokens(frames[part].to(self.asker.session.model.model.input_device))

    @torch.inference_mode()
    def _tokens(self, frames: Tensor) -> Tensor:
        """uint8 [F, S, S, 3] -> [F, t, H] in host memory: 1 MB a frame of a 7B model."""
        tower = self.asker.session.model.model.vision_tower
        pixels = self.asker.session.image_processor.normalize(frames.to(tower.device), tower.dtype)
        return frame_tokens(self.asker.session.model, pixels).cpu()

    def _result(self, length: int, depth: int, responses: list[str], seconds: float) -> dict:
        """The published keys, and facts needed to interpret the score."""
        found = [needle.is_found(response) for needle, response in zip(self.needles, responses)]
        return {
            "retrieval_question": [needle.question for needle in self.needles],
            "answer": [needle.answer for needle in self.needles],
            "context_length": length,
            "depth_percent": float(depth),
            "needle": [needle.picture.name for needle in self.needles],
            "model_response": responses,
            "score": sum(found) / len(found),
            "test_duration_seconds": round(seconds, 3),
            "test_timestamp_utc": datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S%z"),
            "insert_index": insertion_index(length, depth),
        }
