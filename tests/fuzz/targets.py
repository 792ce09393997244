"""What is tried with damaged files: every try ends in a result that holds, or in one typed error of one line."""

from __future__ import annotations

import json
import random
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from conftest import TINY
from mutations import changed, damaged
from PIL import Image
from videos import write_video

from videoxl import VideoMemory
from videoxl.benchmarks.recipes import load_recipe, read_score
from videoxl.benchmarks.vnbench import load_examples
from videoxl.errors import VideoWarning, VideoXLError
from videoxl.media.choice import FrameChoice
from videoxl.media.pictures import load_picture
from videoxl.media.pixels import VideoXLImageProcessor
from videoxl.media.stream import open_video
from videoxl.media.subtitles import read_subtitles
from videoxl.model.loading import load_pretrained_model
from videoxl.train.data.labels import encode_conversation
from videoxl.train.data.records import read_records
from videoxl.utils.json_lines import append_row, read_rows

Try = Callable[[random.Random, Path], None]


class WrongError(AssertionError):
    """A result that is wrong without a word."""


def video(folder: Path) -> Try:
    """Frames of a damaged file: numbers and times ascend, and a second reading gives the same."""
    sources = [
        write_video(folder / f"a.{end}", 40, codec, gop=8, size=(64, 48)).read_bytes()
        for end, codec in (("mp4", "libx264"), ("mkv", "libx264"), ("ts", "mpeg2video"), ("webm", "libvpx-vp9"))
    ] + [(folder / "a.avi").read_bytes() for _ in [write_video(folder / "a.avi", 40, "mpeg4", gop=8, size=(64, 48))]]
    processor = VideoXLImageProcessor(28)

    def read(path: Path):
        numbers, times, frames = [], [], []
        with open_video(path, processor, FrameChoice(num_frames=12)) as stream:
            for chunk in stream:
                numbers += chunk.indices
                times += chunk.timestamps
                frames.append(chunk.frames)
        return numbers, times, np.concatenate(frames)

    def attempt(rng: random.Random, folder: Path) -> None:
        path = folder / "film"
        path.write_bytes(damaged(rng.choice(sources), rng))
        first = read(path)
        numbers, times, frames = read(path)
        if (numbers, times) != first[:2] or not np.array_equal(frames, first[2]):
            raise WrongError("two readings differ")
        if numbers != sorted(set(numbers)) or times != sorted(times) or not np.isfinite(times).all():
            raise WrongError(f"frames {numbers} at {times}")

    return attempt


def picture(folder: Path) -> Try:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8))
    sources = []
    for end in ("png", "jpg", "webp", "gif", "bmp", "tiff"):
        image.save(folder / f"a.{end}")
        sources.append((folder / f"a.{end}").read_bytes())

    def attempt(rng: random.Random, folder: Path) -> None:
        path = folder / "picture"
        path.write_bytes(damaged(rng.choice(sources), rng))
        found = load_picture(path)
        if found.mode != "RGB":
            raise WrongError(f"a picture of mode {found.mode}")

    return attempt


def subtitles(folder: Path) -> Try:
    text = "".join(f"{n}\n00:00:{n:02},000 --> 00:00:{n + 1:02},500\nline <i>{n}</i> \n\n" for n in range(1, 30))

    def attempt(rng: random.Random, folder: Path) -> None:
        path = folder / f"a.{rng.choice(('srt', 'vtt', 'ass'))}"
        path.write_bytes(damaged(text.encode(), rng))
        lines = read_subtitles(path)
        if [line.start for line in lines] != sorted(line.start for line in lines) or any(not x.text for x in lines):
            raise WrongError(f"lines {lines[:3]}")

    return attempt


def memory(folder: Path) -> Try:
    """A damaged memory is refused, or is the memory that was saved."""
    model = load_pretrained_model(TINY, device_map="cpu")[1]
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(11, 3, 336, 336, generator=generator)
    made = model.summarize(pixels, prefix_ids=[1, 2, 3], ratio=8)
    made.save(folder / "m")
    content = (folder / "m").read_bytes()
    expected = made.state()

    def attempt(rng: random.Random, folder: Path) -> None:
        path = folder / "m"
        path.write_bytes(damaged(content, rng))
        found = VideoMemory.load(path, model).state()
        same = all(torch.equal(a, b) for x, y in zip(found.layers, expected.layers) for a, b in zip(x, y))
        same &= np.array_equal(found.timestamps, expected.timestamps, equal_nan=True)
        if not same or found.prefix_ids != expected.prefix_ids:
            raise WrongError("another memory was loaded")

    return attempt


def checkpoint(folder: Path) -> Try:
    """A damaged checkpoint is refused, or loads as what its files say."""
    names = [
        path.name for path in TINY.iterdir() if path.is_file() and path.suffix in (".json", ".txt", ".safetensors")
    ]

    def attempt(rng: random.Random, folder: Path) -> None:
        copy = folder / "checkpoint"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(TINY, copy)
        path = copy / rng.choice(names)
        if path.name == "config.json" or (path.suffix == ".json" and rng.random() < 0.5):
            path.write_text(json.dumps(changed(json.loads(path.read_text()), rng)))
        else:
            path.write_bytes(damaged(path.read_bytes(), rng))
        load_pretrained_model(copy, device_map="cpu")

    return attempt


def records(folder: Path) -> Try:
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A film."}]
    content = [{"id": str(n), "video": f"{n}.mp4", "conversations": turns, "evidence": [[0, 1]]} for n in range(3)] + [
        {"id": "t", "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]}
    ]
    tokenizer = load_pretrained_model(TINY, device_map="cpu")[0]

    def attempt(rng: random.Random, folder: Path) -> None:
        path = folder / "r.json"
        text = json.dumps(changed(content, rng))
        path.write_bytes(damaged(text.encode(), rng) if rng.random() < 0.3 else text.encode())
        found = read_records(str(path))
        for record in found:
            for conversation in record.conversations:
                ids, labels = encode_conversation(conversation, tokenizer, has_image=record.kind != "text")
                if len(ids) != len(labels):
                    raise WrongError(f"{len(ids)} ids, {len(labels)} labels")

    return attempt


def results(folder: Path) -> Try:
    rows = [{"question_id": f"q{n}", "answer": "A", "score": 1} for n in range(5)]
    recipe = load_recipe("mlvu_dev")
    scores = {"results": {recipe.task: {f"{recipe.metric},none": 0.5}}, "n-samples": {recipe.task: {"effective": 9}}}
    example = {"video": "a.mp4", "question": "What?", "options": list("wxyz"), "gt": "w", "try": 0, "type": "ret_edit1"}

    def attempt(rng: random.Random, folder: Path) -> None:
        kind = rng.randrange(3)
        path = folder / ("a_results.json" if kind == 1 else "rows.jsonl")
        if kind == 0:
            path.write_bytes(damaged("".join(json.dumps(row) + "\n" for row in rows).encode(), rng))
            before = read_rows(path, is_mended=True)
            append_row(path, changed(rows[0], rng) if rng.random() < 0.9 else {"text": "\ud800"})
            if len(read_rows(path)) != len(before) + 1:
                raise WrongError("a row was lost")
        elif kind == 1:
            path.write_text(json.dumps(changed(scores, rng)))
            value, number = read_score(folder, recipe)
            if not isinstance(value, (int, float)) or not (number is None or isinstance(number, int)):
                raise WrongError(f"a score of {value!r} of {number!r}")
        else:
            path.write_text(json.dumps(changed([example, example | {"try": 1}], rng)))
            load_examples(path, folder)

    return attempt


TARGETS: dict[str, Callable[[Path], Try]] = {
    "video": video, "picture": picture, "subtitles": subtitles, "memory": memory, "checkpoint": checkpoint,
    "records": records, "results": results,
}  # fmt: skip


def campaign(name: str, folder: Path, seeds: Iterator[int]) -> Iterator[tuple[int, str]]:
    """Try one kind of file with seed after seed.

    Yields:
        (seed, what came of it): `read`, `refused`, or what is wrong.
    """
    base = folder / f"{name}-sources"
    base.mkdir(parents=True, exist_ok=True)
    attempt = TARGETS[name](base)
    for seed in seeds:
        place = folder / f"{name}-try"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", VideoWarning)
            try:
                attempt(random.Random(f"{name} {seed}"), place)
                yield seed, "read"
            except VideoXLError as error:
                lines = str(error).strip().splitlines()
                allowed = name in ("records", "results") or len(lines) == 1
                yield seed, "refused" if lines and allowed else f"an error of {len(lines)} lines: {error}"
            except WrongError as error:
                yield seed, f"wrong: {error}"
            except Exception as error:
                yield seed, f"untyped: {type(error).__name__}: {error}"
