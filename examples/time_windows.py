"""What the examples share: windows of time over a video, seconds as text, and their output."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from videoxl import VideoXL
from videoxl.errors import ArgumentError
from videoxl.media.stream import probe_video


@dataclass
class Moment:
    """What was found between two seconds of a video.

    Attributes:
        start, end: seconds from the first frame. text: what the model says about it. score: 0 to 1, or None.
    """

    start: float
    end: float
    text: str
    score: float | None = None

    def __str__(self) -> str:
        score = "" if self.score is None else f"  {self.score:.2f}"
        return f"{clock(self.start)}-{clock(self.end)}{score}  {self.text}"


def clock(second: float) -> str:
    """A second as H:MM:SS."""
    whole = int(second)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"


def duration(video: Path) -> float:
    """Length of a video in seconds. Raises `VideoError` if the file is not a video."""
    return float(probe_video(str(video)).duration)


def windows(start: float, end: float, length: float, step: float | None = None) -> Iterator[tuple[float, float]]:
    """Spans of `length` seconds from `start` to `end`, one every `step` (None: one after the other); the last is cut.

    Raises:
        ArgumentError: a length or a step that is not above 0.
    """
    step = length if step is None else step
    if length <= 0 or step <= 0:
        raise ArgumentError(f"windows of {length} s every {step} s cover nothing; give lengths above 0")
    at = start
    while at < end:
        yield at, min(at + length, end)
        if at + length >= end:
            return
        at += step


def parser_of(text: str) -> argparse.ArgumentParser:
    """A parser with the options that all examples share."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("video", type=Path)
    parser.add_argument(
        "--model", type=Path, help="checkpoint folder (default: the bundled model, which only knows cards)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda:0, ... (default: auto)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def open_model(given: argparse.Namespace) -> VideoXL:
    """Load the model after checking the video, so that a wrong path fails at once."""
    duration(given.video)
    return VideoXL.from_pretrained(given.model, given.device)


def report(title: str, moments: list[Moment], as_json: bool, **more: object) -> None:
    """Print what was found, as text or as JSON."""
    if as_json:
        json.dump({**more, "moments": [asdict(moment) for moment in moments]}, sys.stdout, indent=2)
        print()
        return
    print(title)
    for moment in moments:
        print(moment)
