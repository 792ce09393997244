"""Excludes from the loss names that would make a held-out pair of colour and shape.

Training never shows such a pair. With a loss over all names the decoder learns exactly that: nothing yellow is a cross,
so a yellow cross must be a square (docs/log/2026-11.md). An excluded name is neither taught nor ruled out.
`patch_classes` does the same for the tower.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from videoxl.constants import IGNORE_INDEX
from videoxl.synth.cards import COLOUR_NAMES, Card
from videoxl.synth.glyphs import SHAPES
from videoxl.utils.transfer import send

COLOUR, SHAPE = 0, 1
_ID_BITS = 32  # bits of the token id in a label; the bits above hold a row of `UnseenPairs.table`
NAMES = (COLOUR_NAMES, SHAPES)


def leaving_out(label: int, row: int) -> int:
    """A label whose loss excludes the ids in this row of `UnseenPairs.table`."""
    return label | row << _ID_BITS


class UnseenPairs:
    """Marks labels of names with the ids that their loss excludes.

    Attributes:
        table: bool [n, V], excluded ids by row; none in the first row.
    """

    def __init__(self, tokenizer, vocab_size: int):
        self._what: dict[tuple[int, ...], tuple[int, str]] = {}  # kind and name of ids
        self._rows: dict[tuple[tuple[int, ...], str], list[int]] = {}  # of `table`: for ids of a name beside another
        sets: dict[frozenset[int], int] = {frozenset(): 0}
        for before in ("", " "):  # at the start of an answer, and within a text
            for kind, names in enumerate(NAMES):
                ids = {name: tuple(tokenizer(before + name).input_ids) for name in names}
                self._what |= {own: (kind, name) for name, own in ids.items()}
                for other in NAMES[1 - kind]:
                    unseen = [own for name, own in ids.items() if _is_held_out(kind, name, other)]
                    seen = [own for own in ids.values() if own not in unseen]
                    for own in ids.values():
                        left_out = (_only_in(unseen, seen, own[:place]) for place in range(len(own)))
                        self._rows[own, other] = [sets.setdefault(each, len(sets)) for each in left_out]
        self._by_first_id: dict[int, list[tuple[int, ...]]] = {}
        for own in sorted(self._what, key=len, reverse=True):
            self._by_first_id.setdefault(own[0], []).append(own)
        self.table: Tensor = torch.zeros(len(sets), vocab_size, dtype=torch.bool)
        for left_out, row in sets.items():
            self.table[row, sorted(left_out)] = True

    def mark(self, ids: Sequence[int], labels: Sequence[int]) -> list[int]:
        """Labels of a text, with the excluded ids marked at names that have labels.

        A colour belongs to the shape after it ("yellow square"). A single name belongs to the last single name of the
        other kind: the question says "the shape of the yellow thing", and the answer "square".
        """
        marked = list(labels)
        alone: list[str | None] = [None, None]
        found = [*self._find(ids), _NOTHING]
        place = 0
        while place < len(found) - 1:
            start, own, kind, name = found[place]
            next_start, next_own, next_kind, next_name = found[place + 1]
            if kind == COLOUR and next_kind == SHAPE and next_start == start + len(own):
                self._mark(marked, start, own, next_name)
                self._mark(marked, next_start, next_own, name)
                place += 2
                continue
            alone[kind] = name
            other = alone[1 - kind]
            # Names of two questions can make a pair that is held out.
            if other is not None and not _is_held_out(kind, name, other):
                self._mark(marked, start, own, other)
            place += 1
        return marked

    def hide(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The loss's `LabelHook`: logits [n, V] with excluded ids at -inf, and labels [n] as plain token ids."""
        left_out = send(self.table, logits.device)
        logits = logits.masked_fill(left_out[labels >> _ID_BITS], -torch.inf)
        return logits, labels & ((1 << _ID_BITS) - 1)

    def _find(self, ids: Sequence[int]) -> Iterator[tuple[int, tuple[int, ...], int, str]]:
        """Names in a text: where each begins, its ids, kind and name."""
        place = 0
        while place < len(ids):
            candidates = self._by_first_id.get(ids[place], ())
            own = next((each for each in candidates if tuple(ids[place : place + len(each)]) == each), None)
            if own is not None:
                yield place, own, *self._what[own]
            place += 1 if own is None else len(own)

    def _mark(self, labels: list[int], start: int, own: tuple[int, ...], other: str) -> None:
        for place, row in enumerate(self._rows[own, other], start):
            if row and labels[place] != IGNORE_INDEX:
                labels[place] = leaving_out(labels[place], row)


_NOTHING = (-1, (), -1, "")


def _is_held_out(kind: int, name: str, other: str) -> bool:
    return (Card(name, other) if kind == COLOUR else Card(other, name)).is_held_out


def _only_in(
    unseen: Sequence[tuple[int, ...]], seen: Sequence[tuple[int, ...]], before: tuple[int, ...]
) -> frozenset[int]:
    """Ids that follow `before` only in names of unseen pairs."""
    size = len(before)
    follow = ({own[size] for own in names if own[:size] == before and len(own) > size} for names in (unseen, seen))
    return frozenset(next(follow) - next(follow))
