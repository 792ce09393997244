"""The user's cache folder: what can be computed again, kept to save time. Free of torch."""

from __future__ import annotations

import os
import time
from pathlib import Path


def cache_folder(name: str) -> Path | None:
    """`videoxl/NAME` in the user's cache folder, made if need be; None where it cannot be written."""
    root = os.environ.get("VIDEOXL_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "videoxl")
    folder = Path(root).expanduser() / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # no home folder, or one that is read-only
        return None
    return folder if os.access(folder, os.W_OK) else None


def mark_used(path: Path) -> None:
    """Note that a file was used now; the time of its last change stays."""
    os.utime(path, (time.time(), path.stat().st_mtime))


def keep_newest(folder: Path, pattern: str, most: int) -> None:
    """Delete the files that were used longest ago, beyond `most`. Other processes may do the same meanwhile."""
    try:
        by_age = sorted(folder.glob(pattern), key=lambda path: path.stat().st_atime)
    except OSError:
        return
    for path in by_age[: max(0, len(by_age) - most)]:
        path.unlink(missing_ok=True)
