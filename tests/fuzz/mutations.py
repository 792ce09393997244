"""Damage by seed: what happens to files on bad disks and bad lines, and what somebody may try on purpose."""

from __future__ import annotations

import copy
import random
from typing import Any

ODD = (
    None, True, False, 0, -1, 1, 3.5, 1e308, -1e308, 1 << 31, 1 << 63, -(1 << 63), "", " ", "x", "\0", "\ud800", "../x",
    "/etc/passwd", "<image>", "<|im_end|>", "https://example.com/x", "a" * 5000, [], {}, [[]], [None], {"a": 1},
    float("nan"), float("inf"),
)  # fmt: skip


def damaged(content: bytes, rng: random.Random) -> bytes:
    """One to four kinds of damage to bytes."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        if not data:
            break
        kind = rng.randrange(7)
        at = rng.randrange(len(data))
        size = min(rng.choice((1, 4, 16, 256, 4096)), len(data) - at)
        if kind == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del data[at:]
        elif kind == 2:
            data[at : at + size] = rng.randbytes(size)
        elif kind == 3:
            data[at : at + size] = bytes(size)
        elif kind == 4:
            del data[at : at + size]
        elif kind == 5:
            data[at:at] = data[at : at + size]
        else:
            head = min(4096, len(data))  # where containers say what follows
            data[rng.randrange(head)] = rng.choice((0, 1, 127, 128, 255))
    return bytes(data)


def changed(value: Any, rng: random.Random) -> Any:
    """A JSON value with one to three parts replaced, removed, repeated or renamed."""
    value = copy.deepcopy(value)
    for _ in range(rng.randint(1, 3)):
        places = list(_places(value))
        if not places:
            return rng.choice(ODD)
        holder, key = rng.choice(places)
        kind = rng.randrange(5)
        if kind == 0 and isinstance(holder, dict):
            holder[str(key) + "x"] = holder.pop(key)
        elif kind == 1 and isinstance(holder, dict):
            del holder[key]
        elif kind == 1:
            holder.pop(key)
        elif kind == 2 and isinstance(holder, list):
            holder.insert(key, copy.deepcopy(holder[key]))
        else:
            holder[key] = copy.deepcopy(rng.choice(ODD))
    return value


def _places(value: Any):
    """(container, key) of everything inside."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(items):
        yield value, key
        yield from _places(inner)
