"""Needles: cards with one coloured shape, shown on the whole screen or laid over a part of it.

One combination of colour and shape in four belongs to the test world: in training it is never on a card, never asked
for and never offered as an option.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from videoxl.synth.drawing import GLYPH, SLOTS, G, blank, glyphs_of
from videoxl.synth.glyphs import NUMBER, SHAPES

COLOURS = {
    "red": (0.85, 0.10, 0.12),
    "orange": (0.98, 0.55, 0.05),
    "yellow": (0.95, 0.88, 0.10),
    "green": (0.10, 0.62, 0.20),
    "cyan": (0.10, 0.80, 0.85),
    "blue": (0.12, 0.25, 0.85),
    "purple": (0.55, 0.15, 0.70),
    "brown": (0.45, 0.26, 0.10),
}
COLOUR_NAMES = tuple(COLOURS)
PIECES = 3  # glyphs of a card: frame, paper, shape
FIRST_SLOT = SLOTS - PIECES
"""Glyphs of a scene stand in the slots before; a card laid over it takes the last ones."""


@dataclass(frozen=True)
class Card:
    """What a card shows."""

    colour: str
    shape: str

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"

    @property
    def is_held_out(self) -> bool:
        """Whether it belongs to the test world."""
        return (COLOUR_NAMES.index(self.colour) + SHAPES.index(self.shape)) % 4 == 0


def all_cards(held_out: bool) -> list[Card]:
    """48 cards of the training world, or the 16 of the test world."""
    cards = [Card(colour, shape) for colour in COLOUR_NAMES for shape in SHAPES]
    return [card for card in cards if card.is_held_out == held_out]


def draw_cards(rng: np.random.Generator, number: int, held_out: bool) -> list[Card]:
    """`number` cards in random order that share neither colour nor shape. At most 8."""
    while True:
        chosen: list[Card] = []
        pool = all_cards(held_out)
        while pool and len(chosen) < number:
            card = pool[rng.integers(len(pool))]
            chosen.append(card)
            pool = [other for other in pool if other.colour != card.colour and other.shape != card.shape]
        if len(chosen) == number:
            return chosen


def jitter(rng: np.random.Generator, colour: tuple[float, float, float], strength: float = 0.06) -> np.ndarray:
    return np.clip(np.array(colour) + rng.uniform(-strength, strength, 3), 0, 1)


def show_card(rng: np.random.Generator, card: Card, num_frames: int) -> np.ndarray:
    """A card on the whole screen, [F, WIDTH]."""
    numbers = blank(num_frames)
    _lay(rng, numbers, card, half=rng.uniform(0.92, 1.0), x=rng.uniform(-0.03, 0.03), y=rng.uniform(-0.03, 0.03))
    return numbers


def overlay_card(rng: np.random.Generator, numbers: np.ndarray, card: Card) -> np.ndarray:
    """The frames with a small card somewhere on them, [F, WIDTH]."""
    numbers = numbers.copy()
    half = rng.uniform(0.38, 0.5)
    _lay(rng, numbers, card, half, *rng.uniform(half - 1, 1 - half, 2))
    return numbers


def lay_paper(rng: np.random.Generator, numbers: np.ndarray, half: float, x: float, y: float) -> float:
    """Frame and paper of a card, without a shape; returns the half size of the paper."""
    glyphs = glyphs_of(numbers)
    edge, paper = rng.uniform(0.05, 0.25), rng.uniform(0.9, 1.0, 3)
    inner = half * rng.uniform(0.84, 0.9)
    glyphs[:, FIRST_SLOT] = _glyph("bar", (edge, edge, edge), x, y, half)
    glyphs[:, FIRST_SLOT + 1] = _glyph("bar", tuple(paper), x, y, inner)
    return inner


def _lay(rng: np.random.Generator, numbers: np.ndarray, card: Card, half: float, x: float, y: float) -> None:
    inner = lay_paper(rng, numbers, half, x, y)
    size = inner * rng.uniform(0.5, 0.8)
    room = inner * 0.9 - size
    place = np.array([x, y]) + rng.uniform(-room, room, 2)
    colour = jitter(rng, COLOURS[card.colour])
    glyphs_of(numbers)[:, FIRST_SLOT + 2] = _glyph(card.shape, tuple(colour), *place, size, rng.uniform(-0.15, 0.15))


def _glyph(name: str, colour: tuple, x: float, y: float, half: float, angle: float = 0.0) -> np.ndarray:
    values = np.zeros(len(GLYPH), dtype=np.float32)
    values[G["glyph"]], values[G["opacity"]], values[G["angle"]] = NUMBER[name], 1.0, angle
    values[G["red"] : G["blue"] + 1] = colour
    values[G["x"]], values[G["y"]] = x, y
    values[G["half_width"]] = values[G["half_height"]] = half
    return values
