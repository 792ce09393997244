"""Short names for content: hexadecimal digits of SHA-256."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def digest(*parts: bytes | str, digits: int = 16) -> str:
    """The first `digits` hex digits of the parts, one after the other."""
    return digest_all(parts, digits)


def digest_all(parts: Iterable[bytes | str], digits: int = 16) -> str:
    """As `digest`, for parts that come one by one."""
    found = hashlib.sha256()
    for part in parts:
        found.update(part.encode() if isinstance(part, str) else part)
    return found.hexdigest()[:digits]


def digest_json(content: Any, digits: int = 16) -> str:
    """Digest of a JSON value, independent of key order; values that JSON cannot encode count as their text."""
    return digest(json.dumps(content, sort_keys=True, default=str), digits=digits)


def digest_file(path: Path, digits: int = 16, limit: int = -1) -> str:
    """Digest of a file's bytes, or of the first `limit` of them."""
    with path.open("rb") as file:
        return digest(file.read(limit), digits=digits)
