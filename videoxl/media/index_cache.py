"""Indexes that were read before, in the user's cache folder: a second question about a film starts at once."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import av
import numpy as np

from videoxl.media.container import check_file
from videoxl.media.index import index_video
from videoxl.media.info import VideoIndex, VideoInfo
from videoxl.utils.digest import digest
from videoxl.utils.files import whole_file
from videoxl.utils.user_cache import cache_folder, keep_newest, mark_used

VERSION = 3  # of what an index says; a change of `index_video` must raise it
SMALLEST = 1 << 22  # bytes; a smaller file is indexed about as fast as its index is read
MOST = 1000
"""Indexes that are kept."""

_LOOKED_AT = 1 << 16  # bytes of head and tail that tell files of one size and time of change apart
_ARRAYS = ("timestamps", "keyframes")


def cached_index(path: str | Path) -> VideoIndex:
    """As `index_video`; from the cache where this very file was indexed before."""
    check_file(path)
    folder = cache_folder("index") if Path(path).stat().st_size >= SMALLEST else None
    if folder is None:
        return index_video(path)
    entry = folder / f"{_key(path)}.npz"
    found = _read(entry, str(path))
    if found is None:
        found = index_video(path)
        _write(entry, found)
        keep_newest(folder, "*.npz", MOST)
    return found


def _key(path: str | Path) -> str:
    status = Path(path).stat()
    with open(path, "rb") as file:
        head = file.read(_LOOKED_AT)
        file.seek(max(0, status.st_size - _LOOKED_AT))
        tail = file.read(_LOOKED_AT)
    return digest(f"{VERSION} {av.__version__} {status.st_size} {status.st_mtime_ns}", head, tail, digits=40)


def _read(entry: Path, path: str) -> VideoIndex | None:
    try:
        with np.load(entry, allow_pickle=False) as stored:
            plain = json.loads(str(stored["info"]))
            arrays = {name: stored[name] for name in _ARRAYS if name in stored}
            plain |= {"path": path, "oddities": tuple(plain["oddities"])}
            index = VideoIndex(VideoInfo(**plain, **arrays), bool(stored["timed"]), stored["pts"], stored["key_pts"])
        mark_used(entry)
        return index if len(index.pts) == index.info.num_frames > 0 else None
    except Exception:  # absent, or damaged in whatever way: it is made again
        return None


def _write(entry: Path, index: VideoIndex) -> None:
    info = index.info
    plain = {field.name: getattr(info, field.name) for field in fields(VideoInfo) if field.name not in _ARRAYS}
    arrays = {name: getattr(info, name) for name in _ARRAYS if getattr(info, name) is not None}
    try:
        with whole_file(entry) as draft, open(draft, "wb") as file:
            np.savez(file, info=json.dumps(plain), timed=index.timed, pts=index.pts, key_pts=index.keyframes, **arrays)
    except OSError:  # a full disk: the next question reads the packets again
        pass
