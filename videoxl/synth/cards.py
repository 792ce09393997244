"""Needles: cards with one coloured shape, shown on the whole screen or laid over a part of it.

There are three worlds. The test world has eight of the colours and eight of the shapes, and one in four of their
combinations. The validation world, by which a model is chosen, has another quarter. In training, a combination
of either is never on a card, never asked for and never offered as an option. The other colours and shapes occur only in
training, in all combinations. Without them a colour says much about its possible shapes, and the model confuses
shapes that share a colour.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Literal, NamedTuple, get_args

import numpy as np

from videoxl.errors import DataError
from videoxl.synth.drawing import GLYPH, SLOTS, B, G, blank, glyphs_of
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
    "pink": (0.98, 0.60, 0.78),
    "grey": (0.50, 0.50, 0.50),
    "black": (0.06, 0.06, 0.06),
    "lime": (0.65, 0.95, 0.25),
}
COLOUR_NAMES = tuple(COLOURS)
World = Literal["training", "validation", "test"]
NUM_TESTED = 8
"""The test and validation worlds use the first `NUM_TESTED` colours and shapes."""
_HELD_OUT: dict[int, World] = {1: "validation", 2: "test"}  # by (colour + shape) % 4
FAR = 0.2  # a colour that differs by more than this in one channel counts as another colour
PIECES = 3  # glyphs of a card: frame, paper, shape
FIRST_SLOT = SLOTS - PIECES
"""A scene's glyphs use the slots before this one; a card laid over it uses the last ones."""


class Card(NamedTuple):  # not a dataclass: questions compare cards by the thousand
    """What a card shows. `colour` None: a colour without a name, never that of a held-out card with this shape."""

    colour: str | None
    shape: str

    @property
    def name(self) -> str:
        return self.shape if self.colour is None else f"{self.colour} {self.shape}"

    @property
    def world(self) -> World:
        """The world that it belongs to."""
        if self.colour is None:
            return "training"
        colour, shape = COLOUR_NAMES.index(self.colour), SHAPES.index(self.shape)
        return "training" if max(colour, shape) >= NUM_TESTED else _HELD_OUT.get((colour + shape) % 4, "training")

    @property
    def is_held_out(self) -> bool:
        """Whether training never shows it."""
        return self.world != "training"


@cache
def all_cards(world: World) -> tuple[Card, ...]:
    """The cards of a world: 112 for training, 16 each for validation and tests. Raises `DataError` for another one."""
    if world not in get_args(World):
        raise DataError(f"there is no world {world!r}; there are {', '.join(get_args(World))}")
    cards = [Card(colour, shape) for colour in COLOUR_NAMES for shape in SHAPES]
    return tuple(card for card in cards if card.world == world)


def draw_cards(rng: np.random.Generator, number: int, world: World) -> list[Card]:
    """`number` (at most 8) cards in random order, no two with the same colour or shape."""
    while True:
        chosen: list[Card] = []
        pool: Sequence[Card] = all_cards(world)
        while pool and len(chosen) < number:
            card = pool[rng.integers(len(pool))]
            chosen.append(card)
            pool = [other for other in pool if other.colour != card.colour and other.shape != card.shape]
        if len(chosen) == number:
            return chosen


def jitter(rng: np.random.Generator, colour: tuple[float, float, float], strength: float = 0.06) -> np.ndarray:
    return np.clip(np.array(colour) + rng.uniform(-strength, strength, 3), 0, 1)


_HELD_OUT_CARDS = (*all_cards("validation"), *all_cards("test"))
_HELD_OUT_INKS = np.array([COLOURS[card.colour] for card in _HELD_OUT_CARDS if card.colour is not None])
_HELD_OUT_SHAPES = np.array([[card.shape == shape for shape in SHAPES] for card in _HELD_OUT_CARDS])


def are_held_out(inks: np.ndarray) -> np.ndarray:
    """Which shapes in these inks [n, 3] look like a held-out card: bool [n, shapes]."""
    near = np.abs(_HELD_OUT_INKS - inks[:, None]).max(axis=2) <= FAR
    return near @ _HELD_OUT_SHAPES


def draw_ink(rng: np.random.Generator, shape: str) -> np.ndarray:
    """Any colour that does not make a held-out card of this shape."""
    while True:
        ink = rng.uniform(0, 1, 3).astype(np.float32)  # float32, so that frames pass the same threshold
        if ink.min() < 0.75 and not are_held_out(ink[None])[0, SHAPES.index(shape)]:  # and no white
            return ink


def show_card(rng: np.random.Generator, card: Card, num_frames: int) -> np.ndarray:
    """A card on the whole screen, [F, WIDTH]."""
    numbers = blank(num_frames)
    _lay(rng, numbers, card, half=rng.uniform(0.92, 1.0), x=rng.uniform(-0.03, 0.03), y=rng.uniform(-0.03, 0.03))
    return numbers


def overlay_card(rng: np.random.Generator, numbers: np.ndarray, card: Card) -> np.ndarray:
    """The frames with a small card at a random place, [F, WIDTH]. Flashes are turned off while the card is shown:
    twice as bright, brown is orange.
    """
    numbers = numbers.copy()
    numbers[:, B["light"]] = 1.0
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
    colour = draw_ink(rng, card.shape) if card.colour is None else jitter(rng, COLOURS[card.colour])
    glyphs_of(numbers)[:, FIRST_SLOT + 2] = _glyph(card.shape, tuple(colour), *place, size, rng.uniform(-0.15, 0.15))


def _glyph(name: str, colour: tuple, x: float, y: float, half: float, angle: float = 0.0) -> np.ndarray:
    values = np.zeros(len(GLYPH), dtype=np.float32)
    values[G["glyph"]], values[G["opacity"]], values[G["angle"]] = NUMBER[name], 1.0, angle
    values[G["red"] : G["blue"] + 1] = colour
    values[G["x"]], values[G["y"]] = x, y
    values[G["half_width"]] = values[G["half_height"]] = half
    return values
