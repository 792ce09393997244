"""JSON Lines files that survive a killed process: a half-written last line is dropped and can be written again."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

from videoxl.errors import DataError
from videoxl.utils.files import write_text


def read_rows(path: Path, is_mended: bool = False) -> list[dict]:
    """Objects of a file; see `read_numbered`."""
    return [row for _, row in read_numbered(path, is_mended)]


def read_numbered(path: Path, is_mended: bool = False) -> list[tuple[int, dict]]:
    """Objects of a file, each with the number of its line. Blank lines are skipped.

    Args:
        is_mended: cut off a last line that was not completely written.

    Raises:
        DataError: no such file, or a line that is not a JSON object; the message names the line.
    """
    try:
        text = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    rows, kept = [], 0
    lines = text.splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            kept += len(line)
            continue
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError("it is no object")
            if is_mended and not line.endswith(b"\n"):
                raise ValueError("it has no end")
        except ValueError as error:
            if is_mended and number == len(lines):
                break
            raise DataError(f"{path}, line {number}: not a JSON object ({error}): {_brief(line)}") from error
        rows.append((number, row))
        kept += len(line)
    if is_mended and kept < len(text):
        with open(path, "r+b") as file:
            file.truncate(kept)
    return rows


def append_row(path: Path, row: dict) -> None:
    """Append one line, on disk when this returns. Raises `DataError` where it cannot be written."""
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(_line(row))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise DataError(f"cannot write to {path}: {error.strerror}") from error


def write_rows(path: Path, rows: Iterable[dict]) -> None:
    """Write a whole file, which appears whole or not at all."""
    try:
        write_text(path, "".join(map(_line, rows)))
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror}") from error


def _line(row: dict) -> str:
    text = json.dumps(row, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a pair, which only an escape can hold
        text = json.dumps(row)
    return text + "\n"


def _brief(line: bytes) -> str:
    text = line.decode("utf-8", "replace").strip()
    return text if len(text) <= 80 else text[:80] + "..."
