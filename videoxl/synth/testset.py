"""Tests of the small model: needles, orders, counts and advertisements of the test world, drawn one by one."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from videoxl.media.choice import FrameChoice
from videoxl.media.pixels import VideoXLImageProcessor
from videoxl.media.stream import open_video
from videoxl.synth.cards import World, draw_cards
from videoxl.synth.drawing import DrawnFrames
from videoxl.synth.files import write_video
from videoxl.synth.questions import (
    Question,
    advertisement,
    choose_card,
    choose_colour,
    choose_count,
    choose_order,
    choose_shape,
)
from videoxl.synth.scenes import families
from videoxl.synth.story import tell

DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
MIXED = "all families"
NEEDLE_QUESTIONS = (choose_card, choose_colour, choose_shape)
TRIES = 4
_STREAMS: dict[World, int] = {"test": 1 << 20, "validation": 1 << 21}  # apart from each other and from training


@dataclass
class Item:
    """One video with its questions.

    Attributes:
        frames: numbers to draw from, or uint8 [F, S, S, 3] read back from a file.
        facts: properties to group results by (family, depth, ...).
    """

    frames: DrawnFrames | torch.Tensor
    questions: list[Question]
    facts: dict[str, str | float]


class TestSet(Dataset):
    """`number` videos of one task at one length. Sample i depends only on (world, task, seed, length, i).

    Tasks:
        needle: one card among scenes of one family, or of all; a choice of four. Depths vary fastest, then families.
        ordering, counting: four cards, or one to six; four tries each with the right option in every place.
        advertisement: the quick start's question; every other video has no card.
    """

    __test__ = False  # not one of pytest's

    def __init__(
        self,
        task: str,
        number: int,
        num_frames: int,
        side: int,
        seed: int = 0,
        files: int = 0,
        overlaid: float = 0.35,
        world: World = "test",
    ):
        """Args:
        files: every Nth video is written as H.264 and read back; 0: none. overlaid: as in `tell`.
        world: whose cards are shown. Validation draws other videos than tests, without the families that tests add.
        """
        self.task, self.number, self.num_frames, self.side = task, number, num_frames, side
        self.seed, self.files, self.overlaid = seed, files, overlaid
        self.world: World = world
        self._stream = _STREAMS[world]
        self._families = families(held_out=world == "test")
        self._make = {
            "needle": self._needle,
            "ordering": self._ordering,
            "counting": self._counting,
            "advertisement": self._advertisement,
        }[task]

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, index: int) -> Item:
        rng = np.random.default_rng([self._stream, self.seed, sum(self.task.encode()), self.num_frames, index])
        numbers, questions, facts = self._make(rng, index)
        frames: DrawnFrames | torch.Tensor = DrawnFrames(torch.from_numpy(numbers), [len(numbers)], self.side)
        facts["source"] = "stream"
        if self.files and index % self.files == self.files // 2:
            frames, facts["source"] = _through_a_file(numbers, self.side), "mp4"
        return Item(frames, questions, facts)

    def _needle(self, rng: np.random.Generator, index: int):
        names = [*self._families, MIXED]
        family, depth = names[index // len(DEPTHS) % len(names)], DEPTHS[index % len(DEPTHS)]
        cards = draw_cards(rng, 1, self.world)
        story = tell(
            rng,
            self.num_frames,
            cards,
            self._families if family == MIXED else [family],
            depth,
            card_frames=(1, 1),
            overlaid=self.overlaid,
        )
        question = NEEDLE_QUESTIONS[index % len(NEEDLE_QUESTIONS)](rng, cards, self.world)
        return story.numbers, [question], {"family": family, "depth": depth, "kind": question.kind}

    def _ordering(self, rng: np.random.Generator, index: int):
        cards = draw_cards(rng, 4, self.world)
        story = tell(rng, self.num_frames, cards, self._families, overlaid=self.overlaid)
        question = choose_order(rng, cards, self.world)
        return story.numbers, [question.turned(place) for place in range(TRIES)], {"kind": "ordering"}

    def _counting(self, rng: np.random.Generator, index: int):
        """The row of numbers is drawn first, then the right one within it, so the row does not give it away."""
        first = 1 + int(rng.integers(3))
        cards = draw_cards(rng, first + int(rng.integers(4)), self.world)
        story = tell(rng, self.num_frames, cards, self._families, overlaid=self.overlaid)
        question = choose_count(rng, cards, self.world, first)
        return story.numbers, [question.turned(place) for place in range(TRIES)], {"kind": "counting"}

    def _advertisement(self, rng: np.random.Generator, index: int):
        cards = draw_cards(rng, index % 2, self.world)
        story = tell(rng, self.num_frames, cards, self._families)
        question = replace(advertisement(rng, cards, self.world), kind="advertisement" if cards else "no advertisement")
        return story.numbers, [question], {"kind": question.kind}


def _through_a_file(numbers: np.ndarray, side: int) -> torch.Tensor:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "video.mp4"
        write_video(path, numbers, side)
        with open_video(str(path), VideoXLImageProcessor(side), FrameChoice(fps=1.0)) as stream:
            frames = np.concatenate([chunk.frames for chunk in stream])
    return torch.from_numpy(frames)
