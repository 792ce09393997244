"""Unreadable samples: logged by id and counted; too many of them stop the run."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from videoxl.errors import DataError

FILE = "bad_samples.jsonl"


class BadSamples:
    """The log of unreadable samples of one run, `bad_samples.jsonl` in its output folder.

    Attributes:
        reasons: error message by sample id.
    """

    def __init__(self, folder: Path, total: int, max_fraction: float, resumed: bool = False, owner: bool = True):
        """Args:
        total: number of all samples. max_fraction: share of them that may be unreadable.
        resumed: continue the existing log; otherwise it is from an earlier run and is removed.
        owner: whether this process may remove the log; True in one process only.
        """
        self.path = folder / FILE
        self.total = total
        self.max_fraction = max_fraction
        self.reasons: dict[str, str] = {}
        if not resumed:
            if owner:
                self.path.unlink(missing_ok=True)
        elif self.path.is_file():
            for line in self.path.read_text().splitlines():
                try:
                    entry = json.loads(line)
                    self.reasons[entry["id"]] = entry["reason"]
                except (ValueError, KeyError):
                    continue  # partial line from a process that was killed
        self._found_before = len(self.reasons)

    @property
    def number(self) -> int:
        return len(self.reasons)

    def add(self, entries: Iterable[tuple[str, str]], write: bool = True, known_to_all: bool = False) -> None:
        """Count the samples (id, reason) that are new, and log them if `write`.

        Args:
            known_to_all: every process adds the same ones, so they count once.

        Raises:
            DataError: more than `max_fraction` of all samples cannot be read.
        """
        new = {name: reason for name, reason in entries if name not in self.reasons}
        if not new:
            return
        self.reasons |= new
        if known_to_all:
            self._found_before = self.number
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if write:
            lines = [json.dumps({"id": name, "reason": reason}) + "\n" for name, reason in new.items()]
            with self.path.open("a") as file:
                file.writelines(lines)
        self.check(self.number)

    @property
    def found_here(self) -> int:
        """Number of unreadable samples that only this process counts."""
        return self.number - self._found_before

    def check(self, number: int) -> None:
        """Raise `DataError` if `number` samples are too many."""
        if number > self.max_fraction * self.total:
            listed = "\n".join(f"  {name}: {reason}" for name, reason in list(self.reasons.items())[:5])
            raise DataError(
                f"{number} of {self.total} samples cannot be read, more than the share of {self.max_fraction:g} "
                f"that --max_bad_fraction allows; all of them are in {self.path}. The first:\n{listed}"
            )
