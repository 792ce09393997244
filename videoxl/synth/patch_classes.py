"""What each patch of a drawn frame shows, as classes: the labels of the tower's first lessons.

A patch belongs to the topmost glyph whose square covers its middle, whether or not the glyph has ink there: the hole
of a ring is ring.

Shape letters: P patches of a frame, row by row.
"""

from __future__ import annotations

import numpy as np

from videoxl.synth.cards import COLOUR_NAMES, Card, is_near_held_out
from videoxl.synth.drawing import SLOTS, G, glyphs_of
from videoxl.synth.glyphs import NAMES, SHAPES
from videoxl.train.vision_classes import UNKNOWN

NO = "none"
_KINDS = (*SHAPES, "blob", "bar", "digit", "letter")
PATCH_CLASSES = {"colour": [NO, *COLOUR_NAMES], "shape": [NO, *SHAPES], "glyph": [NO, *_KINDS]}
"""Colour and shape are those of shapes on cards; glyph is what a patch shows, on a card or not."""


def _kind(name: str) -> str:
    if name in _KINDS:
        return name
    return "digit" if name.isdigit() else "letter"


_GLYPH_CLASS = np.array([PATCH_CLASSES["glyph"].index(_kind(name)) for name in NAMES])


def patch_classes(numbers: np.ndarray, across: int, card: Card | None) -> np.ndarray:
    """Classes of the patches of one frame.

    Args:
        numbers: [WIDTH], as `drawing` takes them. across: patches a side. card: what the frame's last glyph is on, if
            it is on a card.

    Returns:
        int64 [3, P], rows in the order of `PATCH_CLASSES`. A colour without a name is `UNKNOWN`; so is a shape of the
        haystack in a colour that a card of the test world has with it.
    """
    glyphs = glyphs_of(numbers[None])[0]
    line = (np.arange(across) + 0.5) / across * 2 - 1
    y, x = (place.ravel() for place in np.meshgrid(line, line, indexing="ij"))
    classes = np.zeros((len(PATCH_CLASSES), across * across), dtype=np.int64)
    for slot, glyph in enumerate(glyphs):
        if glyph[G["opacity"]] <= 0:
            continue
        covered = _covers(glyph, x, y)
        name = NAMES[int(glyph[G["glyph"]])]
        is_on_card = card is not None and slot == SLOTS - 1
        kind = _GLYPH_CLASS[int(glyph[G["glyph"]])]
        if not is_on_card and name in SHAPES and is_near_held_out(name, glyph[G["red"] : G["blue"] + 1]):
            kind = UNKNOWN
        colour = shape = 0
        if is_on_card:
            colour = UNKNOWN if card.colour is None else PATCH_CLASSES["colour"].index(card.colour)
            shape = PATCH_CLASSES["shape"].index(card.shape)
        classes[:, covered] = np.array([[colour], [shape], [kind]])
    return classes


def _covers(glyph: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Which of the places [P] lie in the glyph's square."""
    cos, sin = np.cos(glyph[G["angle"]]), np.sin(glyph[G["angle"]])
    dx, dy = x - glyph[G["x"]], y - glyph[G["y"]]
    along, across = cos * dx + sin * dy, cos * dy - sin * dx
    return (abs(along) < glyph[G["half_width"]]) & (abs(across) < glyph[G["half_height"]])
