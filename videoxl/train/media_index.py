"""The size of every picture and the chosen frames of every video, found once and kept beside the records.

Grouping by windows and refusing what cannot be read need every sample's true visual length, and that needs its file:
the header of a picture, the packets of a video. Nothing is decoded.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from videoxl.errors import DataError, VideoXLError
from videoxl.pictures import picture_size
from videoxl.train.records import Record
from videoxl.video import FrameChoice, probe_video

FORMAT = 1


class MediaIndex:
    """Facts about media files.

    Attributes:
        facts: by path: `{"size": [width, height]}`, `{"frames": n}` or `{"error": reason}`.
    """

    def __init__(self, facts: dict[str, dict]):
        self.facts = facts

    def error(self, path: Path) -> str | None:
        return self.facts[str(path)].get("error")

    def size(self, path: Path) -> tuple[int, int]:
        """(width, height) of a picture as it is shown."""
        return tuple(self.facts[str(path)]["size"])

    def frames(self, path: Path) -> int:
        """Frames of a video that are read."""
        return self.facts[str(path)]["frames"]


def frame_choice(video_fps: float, frames_upbound: int) -> FrameChoice:
    """Frames at `video_fps`, at most `frames_upbound` (0: no bound)."""
    return FrameChoice(fps=video_fps, max_frames=frames_upbound or None)


def build_index(
    records: Iterable[Record], source: str, choice: FrameChoice, fallback: Path, progress: bool = True
) -> MediaIndex:
    """Read the stored index of a source, look at what it lacks, store it again.

    Args:
        source: where the records came from; the index lies beside it as `NAME.media-index.json`.
        fallback: a folder for the index where that place cannot be written.

    A file that has changed since (by size and time) is looked at again.
    """
    wanted = {str(path): record.kind for record in records for path in record.media}
    path = _place(source, fallback)
    rule = f"{choice.fps}/{choice.max_frames}"
    known = _stored(path, rule)
    facts, missing = {}, []
    for name, kind in wanted.items():
        entry = known.get(name)
        if entry is not None and entry.get("stamp") == _stamp(name) and "error" not in entry:
            facts[name] = entry
        else:
            missing.append((name, kind))
    if missing:
        with ThreadPoolExecutor(min(32, 4 * (os.cpu_count() or 1))) as pool:
            looked = pool.map(lambda item: _look(*item, choice), missing)
            bar = tqdm(looked, total=len(missing), desc="index", unit="file", disable=not progress)
            facts.update(zip((name for name, _ in missing), bar))
        _store(path, rule, known | facts)
    return MediaIndex(facts)


def _look(name: str, kind: str, choice: FrameChoice) -> dict:
    stamp = _stamp(name)
    try:
        if kind == "image":
            return {"stamp": stamp, "size": list(picture_size(name))}
        return {"stamp": stamp, "frames": len(choice.indices(probe_video(name)))}
    except VideoXLError as error:
        return {"stamp": stamp, "error": str(error)}


def _stamp(name: str) -> str | None:
    try:
        found = os.stat(name)
    except OSError:
        return None
    return f"{found.st_size}-{found.st_mtime_ns}"


def _place(source: str, fallback: Path) -> Path:
    plain = source.replace("{", "").replace("}", "").replace(",", "+")
    stem = Path(plain)
    name = stem.stem if len(stem.stem) < 100 else hashlib.sha256(plain.encode()).hexdigest()[:16]
    folder = stem.parent if os.access(stem.parent, os.W_OK) else fallback
    return folder / f"{name}.media-index.json"


def _stored(path: Path, rule: str) -> dict[str, dict]:
    if not path.is_file():
        return {}
    try:
        stored = json.loads(path.read_text())
        return stored["facts"] if (stored["format"], stored["frames"]) == (FORMAT, rule) else {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged ({error}); delete it, it will be made again") from error


def _store(path: Path, rule: str, facts: dict[str, dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(f".{os.getpid()}.part")
    draft.write_text(json.dumps({"format": FORMAT, "frames": rule, "facts": facts}))
    draft.replace(path)  # never half
