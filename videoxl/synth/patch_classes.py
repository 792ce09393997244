"""What each patch of a drawn frame shows, as classes: the labels of the tower's first lessons.

A patch belongs to the topmost glyph whose square covers its middle, whether or not the glyph has ink there: the hole
of a ring is ring.

Shape letters: P patches of a frame, row by row.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from videoxl.synth.cards import COLOUR_NAMES, Card, shapes_held_out
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


def bits_of(attribute: str, names: Iterable[str]) -> int:
    """A number with the bits of these classes."""
    return sum(1 << PATCH_CLASSES[attribute].index(name) for name in names)


def colours_held_out(shape: str) -> list[str]:
    return [colour for colour in COLOUR_NAMES if Card(colour, shape).is_held_out]


def patch_classes(numbers: np.ndarray, across: int, card: Card | None) -> tuple[np.ndarray, np.ndarray]:
    """Classes of the patches of one frame.

    Args:
        numbers: [WIDTH], as `drawing` takes them. across: patches a side. card: what the frame's last glyph is on, if
            it is on a card.

    Returns:
        Classes, int64 [3, P], rows in the order of `PATCH_CLASSES`, and as many numbers with the bits of classes that
        training never has there, since they belong to the test world: shapes in the ink of a glyph, colours of a shape.
        A colour without a name is `UNKNOWN`; so is a shape of the haystack that would be one of those classes.
    """
    glyphs = glyphs_of(numbers[None])[0]
    line = (np.arange(across) + 0.5) / across * 2 - 1
    y, x = (place.ravel() for place in np.meshgrid(line, line, indexing="ij"))
    classes = np.zeros((len(PATCH_CLASSES), across * across), dtype=np.int64)
    never = np.zeros_like(classes)
    for slot, glyph in enumerate(glyphs):
        if glyph[G["opacity"]] <= 0:
            continue
        covered = _covers(glyph, x, y)
        name = NAMES[int(glyph[G["glyph"]])]
        is_on_card = card is not None and slot == SLOTS - 1
        held_out = shapes_held_out(glyph[G["red"] : G["blue"] + 1])
        kind = UNKNOWN if name in held_out else _GLYPH_CLASS[int(glyph[G["glyph"]])]
        colour = shape = no_colours = no_shapes = 0
        if is_on_card:
            colour = UNKNOWN if card.colour is None else PATCH_CLASSES["colour"].index(card.colour)
            shape = PATCH_CLASSES["shape"].index(card.shape)
            no_colours, no_shapes = bits_of("colour", colours_held_out(card.shape)), bits_of("shape", held_out)
        classes[:, covered] = np.array([[colour], [shape], [kind]])
        never[:, covered] = np.array([[no_colours], [no_shapes], [bits_of("glyph", held_out)]])
    return classes, never


def _covers(glyph: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Which of the places [P] lie in the glyph's square."""
    cos, sin = np.cos(glyph[G["angle"]]), np.sin(glyph[G["angle"]])
    dx, dy = x - glyph[G["x"]], y - glyph[G["y"]]
    along, across = cos * dx + sin * dy, cos * dy - sin * dx
    return (abs(along) < glyph[G["half_width"]]) & (abs(across) < glyph[G["half_height"]])
