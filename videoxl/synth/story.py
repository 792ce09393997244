"""Videos as stories: a sequence of scenes with cards in between."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from videoxl.synth.cards import Card, overlay_card, show_card
from videoxl.synth.drawing import blank
from videoxl.synth.scenes import families, keep_apart, make_clip

OVERLAID = 0.35  # share of cards that are laid over a scene


@dataclass
class Story:
    """One video.

    Attributes:
        numbers: its frames, [F, WIDTH] float32.
        scenes: (family, first frame) in order. cards: what is shown, in order.
        shown: half-open range of frames of each card.
    """

    numbers: np.ndarray
    scenes: list[tuple[str, int]]
    cards: list[Card]
    shown: list[tuple[int, int]]

    def in_words(self) -> str:
        """The caption: scenes and cards in order."""
        events = [(first, family) for family, first in self.scenes]
        events += [(first, f"card with a {card.name}") for card, (first, _) in zip(self.cards, self.shown)]
        return "; ".join(text for _, text in sorted(events))


def tell(
    rng: np.random.Generator,
    num_frames: int,
    cards: Sequence[Card],
    from_families: Sequence[str] | None = None,
    depth: float | None = None,
    clip_frames: tuple[int, int] = (2, 24),
    card_frames: tuple[int, int] = (1, 2),
    overlaid: float = OVERLAID,
    drawn: bool = True,
) -> Story:
    """A video of `num_frames` frames.

    Args:
        cards: cards to show, in this order, at random, separate times.
        from_families: families of its scenes; None: some or all of the training world's.
        depth: place of a single card, 0 (at the start) to 1 (at the end); None: random.
        clip_frames, card_frames: least and most frames of a scene and of a card.
        overlaid: share of cards that are laid over a scene.
        drawn: whether to compute frames; False: only the words.
    """
    names = list(from_families) if from_families is not None else draw_families(rng)
    numbers, scenes, filled = [], [], 0
    while filled < num_frames:
        length = min(int(rng.integers(clip_frames[0], clip_frames[1] + 1)), num_frames - filled)
        scenes.append((names[rng.integers(len(names))], filled))
        numbers.append(make_clip(rng, scenes[-1][0], length) if drawn else blank(0))
        keep_apart(numbers[-1], cards)
        filled += length
    story = Story(np.concatenate(numbers), scenes, list(cards), [])
    for first, stop in _places(rng, num_frames, len(cards), card_frames, depth):
        if drawn:
            card, frames = cards[len(story.shown)], story.numbers[first:stop]
            is_overlaid = rng.random() < overlaid
            frames[:] = overlay_card(rng, frames, card) if is_overlaid else show_card(rng, card, stop - first)
        story.shown.append((first, stop))
    return story


def draw_families(rng: np.random.Generator) -> list[str]:
    """All of the training world's, or in half of the cases one to three of them."""
    names = families(held_out=False)
    if rng.random() < 0.5:
        return names
    return rng.permutation(names)[: rng.integers(1, 4)].tolist()


def _places(
    rng: np.random.Generator, num_frames: int, number: int, card_frames: tuple[int, int], depth: float | None
) -> list[tuple[int, int]]:
    """Ranges of frames in order, one in each of `number` equal parts of the video."""
    edges = np.linspace(0, num_frames, number + 1).round().astype(int)
    places = []
    for left, right in zip(edges, edges[1:]):
        room = int(right - left) - (number > 1 and right - left > 1)  # keep one frame of the scene between two cards
        length = min(int(rng.integers(card_frames[0], card_frames[1] + 1)), room)
        share = rng.random() if depth is None else depth
        first = int(left) + round(share * (room - length))
        places.append((first, first + length))
    return places
