"""Output of the `videoxl` command: notes and progress on standard error, numbers and tables on standard output."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

GIB = 1 << 30
notes = Console(stderr=True, highlight=False)


def say(text: str) -> None:
    """Print one line to standard error, without wrapping."""
    notes.print(text, soft_wrap=True, markup=False)


def say_notes(sentences: Iterable[str]) -> None:
    """Print each note once: the same note can come as a warning and in a memory's notes."""
    for sentence in sentences:
        if sentence not in _said:
            _said.add(sentence)
            say(f"note: {sentence}")


def start_notes() -> None:
    """Forget printed notes, so that a new command in this process prints its own."""
    _said.clear()


_said: set[str] = set()


class FrameProgress:
    """A progress bar of frames read; it appears once the total is known."""

    def __init__(self):
        columns = (TextColumn("reading frames"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=notes, transient=True, disable=not notes.is_terminal)
        self._task = None

    def __enter__(self) -> FrameProgress:
        return self

    def __exit__(self, *_) -> None:
        self._bar.stop()

    def start(self, total: int) -> None:
        """Show the bar for `total` frames."""
        self._bar.start()
        self._task = self._bar.add_task("", total=total)

    def __call__(self, frames: int) -> None:
        if self._task is not None:
            self._bar.advance(self._task, frames)
            if self._bar.finished:  # the answer is printed where the bar was
                self._bar.stop()


def numbers_line(report: dict) -> str:
    seconds = ", ".join(f"{stage} {value:.2f} s" for stage, value in report["seconds"].items())
    ratios = ", ".join(map(str, report["ratios"]))
    return (
        f"[{_inputs(report['frames'])}, {report['visual_tokens']} visual tokens, {report['cached_positions']} cached "
        f"positions, ratio {ratios}; {seconds}; peak memory {report['peak_memory_bytes'] / GIB:.2f} GiB]"
    )


def _inputs(frames: int) -> str:
    return f"{frames} frames" if frames else "no video"


def _rows(facts: dict) -> list[tuple[str, str]]:
    """Names and values for a table; byte counts get a unit."""
    return [(key.removesuffix("_bytes").replace("_", " "), _readable(key, value)) for key, value in facts.items()]


def _readable(key: str, value) -> str:
    if key.endswith("bytes"):
        return f"{value / GIB:.2f} GiB" if value >= GIB else f"{value / (1 << 20):.1f} MiB"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.2f}"
    return "yes" if value is True else "no" if value is False else str(value)


def print_facts(facts: dict) -> None:
    """A table of names and values."""
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in _rows(facts):
        table.add_row(name, value)
    Console(highlight=False, width=None if sys.stdout.isatty() else int(os.environ.get("COLUMNS", 200))).print(table)
