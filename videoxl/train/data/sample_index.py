"""An index of every sample's length, built once and stored beside the records.

Grouping by windows and rejecting unreadable samples need every sample's visual length, which comes from its files: the
header of a picture, the packets of a video. Nothing is decoded. The index also stores token counts.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from videoxl.errors import DataError, VideoXLError
from videoxl.media.choice import FrameChoice
from videoxl.media.pictures import picture_size
from videoxl.media.stream import probe_video
from videoxl.train.data.plans import text_shape
from videoxl.train.data.records import Record
from videoxl.utils.digest import digest
from videoxl.utils.files import write_text

FORMAT = 1
Encode = Callable[[Record], list[tuple[list[int], list[int]]]]
"""Token ids and labels of a record's conversations."""


class SampleIndex:
    """Facts about files and texts.

    Attributes:
        media: facts by path: `{"size": [width, height]}`, `{"frames": n}` or `{"error": reason}`.
        texts: result of `text_shape` by digest of a record's conversations.
    """

    def __init__(self, media: dict[str, dict], texts: dict[str, list]):
        self.media = media
        self.texts = texts

    def error(self, path: Path) -> str | None:
        return self.media[str(path)].get("error")

    def size(self, path: Path) -> tuple[int, int]:
        """(width, height) of a picture after EXIF rotation."""
        return tuple(self.media[str(path)]["size"])

    def frames(self, path: Path) -> int:
        """Number of frames to read of a video."""
        return self.media[str(path)]["frames"]

    def text_shape(self, record: Record) -> tuple[list[int], int, int]:
        texts, suffix, questions = self.texts[_text_digest(record)]
        return texts, suffix, questions


def frame_choice(video_fps: float, frames_upbound: int) -> FrameChoice:
    """Frames at `video_fps`, at most `frames_upbound` (0: no bound)."""
    return FrameChoice(fps=video_fps, max_frames=frames_upbound or None)


def text_rule(tokenizer, version: str, control_tokens: bool = False) -> str:
    """Identifies what token counts depend on besides the text: prompt version, control tokens, vocabulary."""
    vocabulary = json.dumps(sorted(tokenizer.get_vocab().items())).encode()
    return f"{version} {digest(vocabulary)}" + ("" if control_tokens else " text")


def build_index(
    records: Sequence[Record],
    source: str,
    choice: FrameChoice,
    encode: Encode,
    text_rule: str,
    fallback: Path,
    progress: bool = True,
) -> SampleIndex:
    """Load the stored index of a source, add missing entries in parallel, and store it again.

    A file that has changed (by size and time) is read again; so is one that could not be read.

    Args:
        source: where the records came from; the index is stored beside it as `NAME.index.json`.
        text_rule: identifies the tokenizer and prompt version.
        fallback: folder for the index if the source's folder is not writable.

    Raises:
        DataError: a damaged index, or conversations of a record with different text before their visual input.
    """
    path = _place(source, fallback)
    stored = _stored(path)
    rule = f"{choice.fps}/{choice.max_frames}"
    media = stored["media"] if stored.get("frames") == rule else {}
    texts = stored["texts"] if stored.get("tokens") == text_rule else {}

    files = {str(path): record.kind for record in records for path in record.media}
    missing = [(name, kind) for name, kind in files.items() if not _is_current(media.get(name), name)]
    spoken = {_text_digest(record): record for record in records}
    unknown = [(key, record) for key, record in spoken.items() if key not in texts]
    if missing or unknown:
        with (
            ThreadPoolExecutor(min(32, 4 * (os.cpu_count() or 1))) as pool,
            tqdm(total=len(missing) + len(unknown), desc="index", disable=not progress) as bar,
        ):
            for (name, _), fact in zip(missing, pool.map(lambda item: _look(*item, choice), missing)):
                media[name] = fact
                bar.update()
            for (key, _), shape in zip(unknown, pool.map(lambda item: _shape(item[1], encode), unknown)):
                texts[key] = shape
                bar.update()
        _store(path, {"format": FORMAT, "frames": rule, "tokens": text_rule, "media": media, "texts": texts})
    return SampleIndex(media, texts)


def _shape(record: Record, encode: Encode) -> tuple[list[int], int, int]:
    try:
        return text_shape(encode(record))
    except DataError as error:
        raise DataError(f"record {record.id!r}: {error}") from error


def _is_current(fact: dict | None, name: str) -> bool:
    return fact is not None and "error" not in fact and fact.get("stamp") == _stamp(name)


def _look(name: str, kind: str, choice: FrameChoice) -> dict:
    stamp = _stamp(name)
    try:
        if kind == "image":
            return {"stamp": stamp, "size": list(picture_size(name))}
        return {"stamp": stamp, "frames": len(choice.indices(probe_video(name)))}
    except VideoXLError as error:
        return {"stamp": stamp, "error": str(error)}
    except Exception as error:  # whatever a library raises for one file
        return {"stamp": stamp, "error": f"{type(error).__name__}: {error}"}


def _stamp(name: str) -> str | None:
    try:
        found = os.stat(name)
    except OSError:
        return None
    return f"{found.st_size}-{found.st_mtime_ns}"


def _text_digest(record: Record) -> str:
    spoken = json.dumps([record.kind == "text", record.conversations], ensure_ascii=False)
    return digest(spoken, digits=24)


def _place(source: str, fallback: Path) -> Path:
    stem = Path(source.replace("{", "").replace("}", "").replace(",", "+"))
    name = stem.stem if len(stem.stem) < 100 else digest(source)
    folder = stem.parent if os.access(stem.parent, os.W_OK) else fallback
    return folder / f"{name}.index.json"


def _stored(path: Path) -> dict:
    if not path.is_file():
        return {}
    try:
        stored = json.loads(path.read_text())
        return stored if stored["format"] == FORMAT else {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged ({error}); delete it to rebuild it") from error


def _store(path: Path, content: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(content))
