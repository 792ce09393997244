"""What the `videoxl` command prints: notes and progress on standard error, numbers and tables on standard output."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from videoxl.estimate import GIB

notes = Console(stderr=True, highlight=False)


def say(text: str) -> None:
    """One line on standard error, however long."""
    notes.print(text, soft_wrap=True, markup=False)


@contextmanager
def progress_bar(total: int) -> Iterator:
    columns = (TextColumn("reading frames"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=notes, transient=True, disable=not notes.is_terminal) as progress:
        task = progress.add_task("", total=total)
        yield lambda frames: progress.advance(task, frames)


def numbers_line(report: dict) -> str:
    seconds = ", ".join(f"{stage} {value:.2f} s" for stage, value in report["seconds"].items())
    ratios = ", ".join(map(str, report["ratios"]))
    return (
        f"[{report['frames']} frames, {report['visual_tokens']} visual tokens, {report['cached_positions']} cached "
        f"positions, ratio {ratios}; {seconds}; peak memory {report['peak_memory_bytes'] / GIB:.2f} GiB]"
    )


def peak_memory(device: torch.device) -> int:
    """Bytes: allocated on the GPU, or resident in this process on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _rows(facts: dict) -> list[tuple[str, str]]:
    """Names and values for a table; the unit stands behind a number of bytes."""
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
