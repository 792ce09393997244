"""The haystack: families of clips of moving pictures. Only the test world has the last family.

Some families look like needles on purpose (coloured shapes without a card, cards without a shape): nearly all errors of
a model trained without them come from such pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from videoxl.synth.cards import COLOURS, FAR, FIRST_SLOT, Card, jitter, lay_paper
from videoxl.synth.drawing import B, G, blank, glyphs_of
from videoxl.synth.glyphs import DIGITS, LETTERS, NAMES, NUMBER, SHAPES

CHARACTERS = frozenset((*DIGITS, *LETTERS))
DARKER = 0.8  # factor from the cards' colours to those of characters on paper
HELD_OUT = "rings"
"""The family that only the test world has."""


def make_clip(rng: np.random.Generator, family: str, num_frames: int) -> np.ndarray:
    """`num_frames` frames of one scene, [F, WIDTH] float32. Raises KeyError for a family that is not in `FAMILIES`."""
    numbers = blank(num_frames)
    FAMILIES[family](rng, numbers, np.arange(num_frames, dtype=np.float32))
    return numbers


LOOKALIKES = {"empty cards": 0.5, "shapes": 0.1, "lone shapes": 0.1, "letters": 0.1, "flashes": 0.2}
"""Families that resemble cards, and the probability of each when one of them is drawn.
In flashes a bright scene looks like paper.

Cards are hardest to find among these scenes, above all among empty cards.
"""


def keep_apart(numbers: np.ndarray, cards: Sequence[Card]) -> None:
    """Change the colour of a character on an empty card, in place, if it is that of one of `cards`.

    Otherwise "the shape of the yellow thing on the card" would be ambiguous; in long videos it nearly always was. No
    random number is drawn, so everything else stays the same.

    Args:
        numbers: [F, WIDTH], frames of one scene.
    """
    paper = glyphs_of(numbers)[:, FIRST_SLOT + 2]
    if not len(paper) or paper[0, G["opacity"]] <= 0 or NAMES[int(paper[0, G["glyph"]])] not in CHARACTERS:
        return
    ink = paper[0, G["red"] : G["blue"] + 1].copy()
    shown = np.array([COLOURS[card.colour] for card in cards if card.colour is not None]).reshape(-1, 3)
    others = [
        ink,
        *(np.array(colour) * DARKER for colour in np.roll(list(COLOURS.values()), int(ink.sum() * 1e4), axis=0)),
    ]
    # Each card rules out one of the twelve.
    far = [other for other in others if (np.abs(shown - other).max(axis=1) > FAR).all()]
    paper[:, G["red"] : G["blue"] + 1] = far[0]


def families(held_out: bool) -> list[str]:
    """Names of the training world's families; with `held_out`, of all families."""
    return [name for name in FAMILIES if held_out or name != HELD_OUT]


def _colour(rng: np.random.Generator) -> np.ndarray:
    """One of the cards' colours or any other."""
    if rng.random() < 0.5:
        return jitter(rng, list(COLOURS.values())[rng.integers(len(COLOURS))], 0.1)
    return rng.uniform(0, 1, 3)


def _paint(rng: np.random.Generator, numbers: np.ndarray) -> None:
    """Two background colours with a gentle gradient."""
    numbers[:, 0:3], numbers[:, 3:6] = _colour(rng), _colour(rng)
    numbers[:, B["slope_x"]], numbers[:, B["slope_y"]] = rng.uniform(-0.5, 0.5, 2)


def _plain(rng: np.random.Generator, numbers: np.ndarray) -> None:
    """One background colour, often nearly black or nearly white."""
    kind = rng.integers(3)
    shade = (rng.uniform(0, 0.15, 3), rng.uniform(0.85, 1, 3), rng.uniform(0, 1, 3))[kind]
    numbers[:, 0:3] = numbers[:, 3:6] = shade


def _bounce(start: np.ndarray, speed: np.ndarray, time: np.ndarray) -> np.ndarray:
    """Places [F, n] from -1 to 1 of things that move and bounce at the edges."""
    place = (start + 1 + speed * time[:, None]) % 4
    return np.where(place < 2, place, 4 - place) - 1


def _scatter(
    rng: np.random.Generator,
    numbers: np.ndarray,
    time: np.ndarray,
    names: list[str],
    half: tuple[float, float],
    speed: float = 0.15,
    turn: float = 0.0,
) -> np.ndarray:
    """Glyphs that fly about; returns a view of them, [F, n, len(GLYPH)]."""
    n = len(names)
    glyphs = glyphs_of(numbers)[:, :n]
    glyphs[..., G["glyph"]] = [NUMBER[name] for name in names]
    glyphs[..., G["red"] : G["blue"] + 1] = np.stack([_colour(rng) for _ in names])
    glyphs[..., G["opacity"]] = 1.0
    glyphs[..., G["x"]] = _bounce(rng.uniform(-1, 1, n), rng.uniform(-speed, speed, n), time)
    glyphs[..., G["y"]] = _bounce(rng.uniform(-1, 1, n), rng.uniform(-speed, speed, n), time)
    glyphs[..., G["half_width"]] = rng.uniform(*half, n)
    glyphs[..., G["half_height"]] = glyphs[..., G["half_width"]]
    glyphs[..., G["angle"]] = rng.uniform(-turn, turn, n) + rng.uniform(-turn, turn, n) * 0.3 * time[:, None]
    return glyphs


def _pick(rng: np.random.Generator, names: tuple[str, ...], least: int, most: int) -> list[str]:
    return [names[i] for i in rng.integers(len(names), size=rng.integers(least, most + 1))]


def _shapes(rng, numbers, time):
    (_paint if rng.random() < 0.5 else _plain)(rng, numbers)
    _scatter(rng, numbers, time, _pick(rng, SHAPES, 1, FIRST_SLOT), (0.15, 0.5), turn=0.5)


def _big_shape(rng, numbers, time):
    """One large shape, as on a card, but no card."""
    (_plain if rng.random() < 0.7 else _paint)(rng, numbers)
    glyphs = _scatter(rng, numbers, time, _pick(rng, SHAPES, 1, 1), (0.4, 0.8), speed=0.04)
    glyphs[..., G["x"]] *= 0.3
    glyphs[..., G["y"]] *= 0.3
    if (numbers[0, 0:3] > 0.8).all():  # never on white paper
        numbers[:, 0:6] *= rng.uniform(0.2, 0.7)


def _empty_cards(rng, numbers, time):
    """A card without a shape, or with a character, on a scene."""
    _paint(rng, numbers)
    _scatter(rng, numbers, time, _pick(rng, SHAPES, 1, 3), (0.1, 0.4))
    half = rng.uniform(0.35, 1.0)
    room = max(0.0, 1 - half)
    inner = lay_paper(rng, numbers, half, *rng.uniform(-room, room, 2))
    if rng.random() < 0.6:
        glyphs = glyphs_of(numbers)
        paper = glyphs[:, FIRST_SLOT + 1].copy()
        paper[:, G["glyph"]] = NUMBER[str(rng.choice((*DIGITS, *LETTERS)))]
        paper[:, G["red"] : G["blue"] + 1] = _colour(rng) * DARKER
        paper[:, [G["half_width"], G["half_height"]]] = inner * rng.uniform(0.4, 0.8)
        glyphs[:, FIRST_SLOT + 2] = paper


def _letters(rng, numbers, time):
    (_paint if rng.random() < 0.5 else _plain)(rng, numbers)
    _scatter(rng, numbers, time, _pick(rng, LETTERS, 2, FIRST_SLOT), (0.12, 0.4), turn=0.3)


def _digits(rng, numbers, time):
    (_paint if rng.random() < 0.5 else _plain)(rng, numbers)
    _scatter(rng, numbers, time, _pick(rng, DIGITS, 1, FIRST_SLOT), (0.15, 0.6), turn=0.3)


def _blobs(rng, numbers, time):
    (_plain if rng.random() < 0.6 else _paint)(rng, numbers)
    _scatter(rng, numbers, time, ["blob"] * rng.integers(1, FIRST_SLOT + 1), (0.2, 0.9), speed=0.1)


def _bars(rng, numbers, time):
    (_plain if rng.random() < 0.4 else _paint)(rng, numbers)
    glyphs = _scatter(rng, numbers, time, ["bar"] * rng.integers(1, FIRST_SLOT + 1), (0.05, 0.35), turn=1.6)
    glyphs[..., G["half_height"]] *= rng.uniform(2, 8)


def _text(rng, numbers, time):
    """A line of characters that scrolls."""
    _plain(rng, numbers)
    names = _pick(rng, LETTERS, FIRST_SLOT, FIRST_SLOT)
    glyphs = _scatter(rng, numbers, time, names, (0.11, 0.11))
    glyphs[..., G["red"] : G["blue"] + 1] = 1 - numbers[0, 0:3].round()
    scroll = rng.uniform(-0.1, 0.1) * time[:, None]
    glyphs[..., G["x"]] = (np.linspace(-0.8, 0.8, len(names)) + scroll + 1) % 2 - 1
    glyphs[..., G["y"]] = rng.uniform(-0.8, 0.8)


def _gradient(rng, numbers, time):
    _paint(rng, numbers)
    angle = rng.uniform(0, 2 * np.pi) + rng.uniform(-0.3, 0.3) * time
    numbers[:, B["slope_x"]], numbers[:, B["slope_y"]] = np.cos(angle) * 0.6, np.sin(angle) * 0.6


def _waves(rng, numbers, time):
    _paint(rng, numbers)
    numbers[:, B["wave"]] = rng.uniform(0.2, 0.6)
    numbers[:, [B["wave_x"], B["wave_y"]]] = rng.uniform(-8, 8, 2)
    numbers[:, B["wave_phase"]] = rng.uniform(-1, 1) * time


def _grain(rng, numbers, time):
    _paint(rng, numbers)
    numbers[:, B["grain"]] = rng.uniform(0.2, 0.8)
    numbers[:, B["grain_cells"]] = rng.integers(4, 60)
    numbers[:, B["grain_x"]] = rng.integers(60) + (rng.uniform(0, 3) * time)
    numbers[:, B["grain_y"]] = rng.integers(60)


def _flashes(rng, numbers, time):
    """A scene whose light jumps."""
    (_shapes, _waves, _gradient)[rng.integers(3)](rng, numbers, time)
    numbers[:, B["light"]] = np.where(rng.random(len(time)) < 0.4, rng.uniform(1.3, 2.0), rng.uniform(0.4, 0.9))


def _rings(rng, numbers, time):
    _paint(rng, numbers)
    numbers[:, B["rings"]] = rng.uniform(0.3, 0.7)
    numbers[:, B["ring_number"]] = rng.uniform(2, 9)
    numbers[:, [B["ring_x"], B["ring_y"]]] = rng.uniform(-0.6, 0.6, 2)
    numbers[:, B["ring_phase"]] = rng.uniform(-1, 1) * time


FAMILIES: dict[str, Callable[[np.random.Generator, np.ndarray, np.ndarray], None]] = {
    "shapes": _shapes,
    "lone shapes": _big_shape,
    "empty cards": _empty_cards,
    "letters": _letters,
    "digits": _digits,
    "blobs": _blobs,
    "bars": _bars,
    "text": _text,
    "gradients": _gradient,
    "waves": _waves,
    "grain": _grain,
    "flashes": _flashes,
    "rings": _rings,
}
