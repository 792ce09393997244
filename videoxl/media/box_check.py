"""Whether an MP4 or QuickTime file ends inside one of its boxes: a fragmented one says nothing else when it is cut."""

from __future__ import annotations

import struct
from pathlib import Path

_MOST_BOXES = 1_000_000


def cut_box(path: str | Path) -> str | None:
    """A sentence about the box that the end of the file cuts; None where all are whole or the file has none."""
    size = Path(path).stat().st_size
    with open(path, "rb") as file:
        if file.read(8)[4:] not in (b"ftyp", b"styp"):
            return None
        at = 0
        for _ in range(_MOST_BOXES):
            file.seek(at)
            head = file.read(16)
            if len(head) < 8:
                return None if not head else _sentence("header", at, size)
            length, kind = struct.unpack(">I4s", head[:8])
            if length == 1:
                if len(head) < 16:
                    return _sentence("header", at, size)
                length = struct.unpack(">Q", head[8:])[0]
            if length == 0:  # up to the end of the file
                return None
            if length < 8:
                return None  # not a box: FFmpeg reads what it can
            if at + length > size:
                return _sentence(kind.decode("latin-1"), at, size)
            at += length
    return None


def _sentence(kind: str, at: int, size: int) -> str:
    return f"the file ends at byte {size:,}, inside a part ({kind}) that begins at {at:,}: cut short"
