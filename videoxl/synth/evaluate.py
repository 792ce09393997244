"""Score a checkpoint on the test world: needles by length, ratio, depth and family; ordering and counting; baselines.

    python -m videoxl.synth.evaluate MODEL --output scores.json --frames 64 256 --ratios 8 16 --samples 100

Answers are generated freely and compared as text. An existing file of scores is resumed.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from videoxl.constants import TOKEN_PERFRAME
from videoxl.errors import DataError
from videoxl.model.loading import load_pretrained_model
from videoxl.synth.answering import answer, encode
from videoxl.synth.cards import World
from videoxl.synth.testset import Item, TestSet
from videoxl.utils.cli_errors import one_line_errors
from videoxl.utils.files import write_json

FRAMES_A_BATCH = {"cpu": 512, "cuda": 32768}
MOST_ROWS = 128
BATCHES = 4  # that small tests aim for, so that all workers have some
TASKS = ("needle", "ordering", "counting", "advertisement")
REDUCED = ("drop", "mean")
"""Reductions without learnt compression, beside `beacon` and those without a ratio."""
WITHOUT_RATIO = ("none", "no video")
"""All tokens kept, and none."""


class Scores:
    """A file of counts of right answers, with one entry (cell) per (task, frames, ratio, reduction, ...).

    Args:
        about: facts that all entries share, such as the model.

    Raises:
        DataError: the file holds scores about something else, or is no file of scores.
    """

    def __init__(self, path: Path, about: dict):
        self.path = path
        self.about = about
        self.cells: list[dict] = []
        if path.is_file():
            try:
                stored = json.loads(path.read_text())
                self.cells = stored.pop("cells")
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise DataError(f"{path} is no file of scores ({error!r}); name another one") from error
            if stored != about:
                raise DataError(f"{path} holds scores about {stored}, not {about}; name another file")

    def has(self, **wanted) -> bool:
        """Whether there is a cell with these values."""
        return any(all(cell.get(name) == value for name, value in wanted.items()) for cell in self.cells)

    def add(self, cell: dict) -> None:
        """Add a finished cell and write the file."""
        self.cells.append(cell)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.path, {**self.about, "cells": self.cells})


def interval(right: int, total: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share."""
    if not total:
        return 0.0, 1.0
    z, share = 1.96, right / total
    middle = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total)) / (1 + z * z / total)
    return max(0.0, middle - half), min(1.0, middle + half)


def evaluate(
    folder: Path,
    scores: Scores,
    task: str,
    frames: Sequence[int],
    ratios: Sequence[int],
    samples: int,
    reductions: Sequence[str] = ("beacon",),
    files: int = 0,
    seed: int = 0,
    device: str = "auto",
    workers: int = 0,
    part: tuple[int, int] = (0, 1),
    world: World = "test",
) -> None:
    """Score `samples` videos of each length with each ratio and reduction; each video is drawn and encoded once.

    Args:
        files: every Nth video goes through an H.264 file; 0: none.
        world: whose cards are asked for; "validation" is for choosing among models.
        part: (i, n): only every n-th sample from the i-th on, for several processes.

    Raises:
        DataError: invalid numbers of frames, samples or parts, or a ratio that does not divide a frame's tokens.
    """
    _check(frames, ratios, samples, reductions, part)
    tokenizer, model, processor, _ = load_pretrained_model(folder, device_map=device)
    for length in frames:
        test = {"task": task, "frames": length, "seed": seed, "samples": samples, "files": files, "part": list(part)}
        if world != "test":
            test["world"] = world
        wanted = [
            (ratio, reduction)
            for reduction in reductions
            for ratio in ([0] if reduction in WITHOUT_RATIO else ratios)
            if not scores.has(**test, ratio=ratio, reduction=reduction)
        ]
        if not wanted:
            continue
        testset = TestSet(task, samples, length, processor.side, seed, files, world=world)
        started = time.perf_counter()
        tallies = {each: Tally() for each in wanted}
        for batch in _batches(testset, length, model.device, workers, part):
            is_seen = any(reduction != "no video" for _, reduction in wanted)
            features = encode(model, processor, [item.frames for item in batch]) if is_seen else []
            tries = max(len(item.questions) for item in batch)
            for ratio, reduction in wanted:
                given = []
                for number in range(tries):
                    texts = [item.questions[number].text for item in batch]
                    seen = None if reduction == "no video" else features
                    method = None if reduction == "no video" else reduction
                    given.append(answer(model, tokenizer, seen, texts, ratio, method))
                for place, item in enumerate(batch):
                    tallies[ratio, reduction].add(item, [row[place] for row in given])
        seconds = time.perf_counter() - started
        for (ratio, reduction), tally in tallies.items():
            cell = {**test, "ratio": ratio, "reduction": reduction}
            scores.add({**cell, **tally.report(), "seconds": round(seconds / len(wanted), 1)})
            low, high = interval(tally.right, tally.total)
            print(
                f"{task:>13} {length:>5} frames  ratio {ratio:>2}  {reduction:<8} {tally.right:>4}/{tally.total:<4}"
                f" = {tally.right / max(1, tally.total):.3f}  [{low:.3f}, {high:.3f}]  tries {tally.tries_right}/"
                f"{tally.tries}  {seconds:.0f} s",
                flush=True,
            )


def _check(frames: Sequence[int], ratios: Sequence[int], samples: int, reductions: Sequence[str], part) -> None:
    for name, value in (("frames", min(frames)), ("samples", samples)):
        if value < 1:
            raise DataError(f"{name} is {value}; it must be at least 1")
    if not 0 <= part[0] < min(part[1], samples):
        raise DataError(f"part {part[0]} of {part[1]} does not exist or has no sample; parts count from 0")
    odd = [ratio for ratio in ratios if ratio < 1 or TOKEN_PERFRAME % ratio]
    if odd and set(reductions) & set(REDUCED):
        raise DataError(f"tokens cannot be dropped or averaged by {odd[0]}: it does not divide {TOKEN_PERFRAME}")


class Tally:
    """Right answers of one cell. A video is right when all its tries are."""

    def __init__(self):
        self.right = self.total = self.tries_right = self.tries = 0
        self.by: dict[str, dict[str, list[int]]] = {}
        self.wrong: list[dict] = []

    def add(self, item: Item, given: Sequence[str]) -> None:
        hits = [text == question.answer for text, question in zip(given, item.questions)]
        right = all(hits)
        self.right, self.total = self.right + right, self.total + 1
        self.tries_right, self.tries = self.tries_right + sum(hits), self.tries + len(hits)
        for name, value in item.facts.items():
            counts = self.by.setdefault(name, {}).setdefault(str(value), [0, 0])
            counts[0], counts[1] = counts[0] + right, counts[1] + 1
        if not right and len(self.wrong) < 20:
            question = item.questions[hits.index(False)]
            self.wrong.append({**item.facts, "wanted": question.answer, "given": given[hits.index(False)]})

    def report(self) -> dict:
        return {
            "right": self.right,
            "total": self.total,
            "tries_right": self.tries_right,
            "tries": self.tries,
            "by": self.by,
            "wrong": self.wrong,
        }


def _batches(
    testset: TestSet, length: int, device: torch.device, workers: int, part: tuple[int, int]
) -> Iterator[list[Item]]:
    indices = list(range(part[0], len(testset), part[1]))
    rows = min(MOST_ROWS, FRAMES_A_BATCH.get(device.type, 512) // length)
    if workers:  # each batch is made by one worker; make enough batches for all
        rows = min(rows, math.ceil(len(indices) / min(workers, BATCHES)))
    rows = max(1, rows)
    batches = [indices[start : start + rows] for start in range(0, len(indices), rows)]
    workers = min(workers, len(batches))
    loader = DataLoader(
        testset, batch_sampler=batches, collate_fn=list, num_workers=workers, prefetch_factor=2 if workers else None
    )
    yield from tqdm(loader, desc=f"{testset.task} {length}", unit="batch", disable=None, leave=False)


@one_line_errors
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m videoxl.synth.evaluate", description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path, help="checkpoint folder")
    parser.add_argument("--output", type=Path, required=True, help="JSON file of scores; an existing one is resumed")
    parser.add_argument("--task", choices=TASKS, default="needle")
    parser.add_argument("--frames", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--ratios", type=int, nargs="+", default=[8, 16])
    parser.add_argument("--reductions", nargs="+", default=["beacon"], choices=("beacon", *WITHOUT_RATIO, *REDUCED))
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--files", type=int, default=0, help="send every Nth video through an mp4 file; 0: none")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--workers", type=int, default=0, help="processes that generate videos")
    parser.add_argument("--part", type=int, nargs=2, default=(0, 1), metavar=("I", "N"), help="part I of N, from 0")
    parser.add_argument(
        "--world", choices=("test", "validation"), default="test", help="test, or validation for choosing models"
    )
    given = parser.parse_args(arguments)
    scores = Scores(given.output, {"model": given.model.resolve().name})
    evaluate(
        given.model, scores, given.task, given.frames, given.ratios, given.samples, given.reductions, given.files,
        given.seed, given.device, given.workers, tuple(given.part), given.world,
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
