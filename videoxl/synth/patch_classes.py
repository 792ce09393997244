"""What each patch of a drawn frame shows, as classes: the labels of the tower's first training stage.

A patch belongs to the topmost glyph whose square covers its middle, whether or not the glyph has ink there: the hole
of a ring is ring.

Shape letters: P patches of a frame, row by row; n glyphs of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

import numpy as np

from videoxl.synth.cards import COLOUR_NAMES, Card, are_held_out
from videoxl.synth.class_tasks import UNKNOWN
from videoxl.synth.drawing import SLOTS, G, glyphs_of
from videoxl.synth.glyphs import NAMES, SHAPES

NO = "none"
_KINDS = (*SHAPES, "blob", "bar", "digit", "letter")
PATCH_CLASSES = {"colour": [NO, *COLOUR_NAMES], "shape": [NO, *SHAPES], "glyph": [NO, *_KINDS]}
"""Colour and shape are labels of shapes on cards; glyph is the kind of any glyph, on a card or not."""


def _kind(name: str) -> str:
    if name in _KINDS:
        return name
    return "digit" if name.isdigit() else "letter"


_GLYPH_CLASS = np.array([PATCH_CLASSES["glyph"].index(_kind(name)) for name in NAMES])


def bits_of(attribute: str, names: Iterable[str]) -> int:
    """Bit mask of these classes."""
    return sum(1 << PATCH_CLASSES[attribute].index(name) for name in names)


_SHAPE_BITS = {
    attribute: np.array([bits_of(attribute, [shape]) for shape in SHAPES]) for attribute in ("shape", "glyph")
}


@cache
def bits_of_colours_held_out(shape: str) -> int:
    """Bits of the colours that only held-out cards have with this shape."""
    return bits_of("colour", [colour for colour in COLOUR_NAMES if Card(colour, shape).is_held_out])


def patch_classes(numbers: np.ndarray, across: int, card: Card | None) -> tuple[np.ndarray, np.ndarray]:
    """Classes of the patches of one frame.

    Args:
        numbers: [WIDTH], as `drawing` takes them. across: patches a side. card: the card in the frame, if there
            is one.

    Returns:
        Classes, int64 [3, P], rows in the order of `PATCH_CLASSES`, and bit masks of the same shape: classes that
        would make a held-out card there, so that training never shows them (shapes in the ink of a glyph, colours of a
        shape). A colour without a name is `UNKNOWN`; so is a scene's shape of one of those classes.
    """
    glyphs = glyphs_of(numbers[None])[0]
    used = np.flatnonzero(glyphs[:, G["opacity"]] > 0)
    glyphs = glyphs[used]
    held_out = are_held_out(glyphs[:, G["red"] : G["blue"] + 1])  # [n, shapes]
    numbers_of_names = glyphs[:, G["glyph"]].astype(int)
    # Row 0 is for patches without a glyph; columns are colour, shape and glyph, as in PATCH_CLASSES.
    classes = np.zeros((len(used) + 1, len(PATCH_CLASSES)), dtype=np.int64)
    never = np.zeros_like(classes)
    classes[1:, 2] = _GLYPH_CLASS[numbers_of_names]
    is_shape = numbers_of_names < len(SHAPES)  # names begin with the shapes; for others the lookup's result is unused
    classes[1:, 2][is_shape & held_out[np.arange(len(used)), numbers_of_names * is_shape]] = UNKNOWN
    never[1:, 2] = held_out @ _SHAPE_BITS["glyph"]
    if card is not None and len(used) and used[-1] == SLOTS - 1:
        colour = UNKNOWN if card.colour is None else PATCH_CLASSES["colour"].index(card.colour)
        classes[-1, :2] = colour, PATCH_CLASSES["shape"].index(card.shape)
        never[-1, :2] = bits_of_colours_held_out(card.shape), held_out[-1] @ _SHAPE_BITS["shape"]
    covered = _cover(glyphs, *_middles(across))
    topmost = (covered * np.arange(1, len(used) + 1)[:, None]).max(axis=0, initial=0)
    return classes[topmost].T.copy(), never[topmost].T.copy()


@cache
def _middles(across: int) -> tuple[np.ndarray, np.ndarray]:
    """Places x and y of the patches' middles, [P] each."""
    line = (np.arange(across, dtype=np.float32) + 0.5) / across * 2 - 1
    y, x = np.meshgrid(line, line, indexing="ij")
    return x.ravel(), y.ravel()


def _cover(glyphs: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Which of the places [P] are in the square of each glyph [n, len(GLYPH)]: bool [n, P]."""
    columns = glyphs.T[:, :, None]
    cos, sin = np.cos(columns[G["angle"]]), np.sin(columns[G["angle"]])
    dx, dy = x - columns[G["x"]], y - columns[G["y"]]
    along, across = cos * dx + sin * dy, cos * dy - sin * dx
    return (abs(along) < columns[G["half_width"]]) & (abs(across) < columns[G["half_height"]])
