"""Labels of patches: what is drawn there, and nothing about combinations of the test world."""

import numpy as np
import torch

from videoxl.synth.cards import COLOURS, FIRST_SLOT, Card, all_cards, overlay_card, show_card
from videoxl.synth.class_tasks import UNKNOWN
from videoxl.synth.drawing import G, blank, draw, glyphs_of
from videoxl.synth.glyphs import NUMBER, SHAPES
from videoxl.synth.patch_classes import PATCH_CLASSES, patch_classes
from videoxl.synth.scenes import families, make_clip

ACROSS = 24


def names_of(classes, attribute):
    """Names of the classes of the patches of an attribute."""
    row = classes[list(PATCH_CLASSES).index(attribute)]
    return {PATCH_CLASSES[attribute][number] if number != UNKNOWN else None for number in np.unique(row)}


def glyph(numbers, slot, name, colour, x=0.0, y=0.0, half=0.3):
    values = glyphs_of(numbers)[0, slot]
    values[G["glyph"]], values[G["opacity"]] = NUMBER[name], 1.0
    values[G["red"] : G["blue"] + 1] = colour
    values[G["x"]], values[G["y"]] = x, y
    values[G["half_width"]] = values[G["half_height"]] = half


def test_a_patch_has_the_topmost_glyph_over_its_middle():
    numbers = blank(1)
    glyph(numbers, 0, "star", (0.1, 0.9, 0.9), x=-0.5, y=-0.5, half=0.4)
    glyph(numbers, 1, "7", (1, 1, 1), x=-0.5, y=-0.5, half=0.1)
    glyph(numbers, 2, "Q", (1, 1, 1), x=0.5, y=0.5, half=0.2)
    kinds = patch_classes(numbers[0], ACROSS, None)[0][2].reshape(ACROSS, ACROSS)
    named = [[PATCH_CLASSES["glyph"][number] for number in row] for row in kinds]
    assert named[6][6] == "digit" and named[3][3] == "star" and named[18][18] == "letter"
    assert named[0][0] == named[12][12] == named[18][6] == "none"
    assert sum(row.count("star") + row.count("digit") for row in named) == 10 * 10  # 0.8 of 2 across 24 patches


def test_ink_of_a_shape_lies_in_its_patches():
    rng = np.random.default_rng(0)
    for card in all_cards("training")[::11]:
        numbers = overlay_card(rng, blank(1), card)
        classes, _ = patch_classes(numbers[0], ACROSS, card)
        pixels = draw(torch.from_numpy(numbers), 336)[0].numpy() / 255
        is_ink = np.abs(pixels - np.array(COLOURS[card.colour])).max(axis=-1) < 0.08
        if card.colour in ("grey", "black", "brown"):  # a card's frame is dark as well
            continue
        y, x = np.nonzero(is_ink)
        patches = classes[1].reshape(ACROSS, ACROSS)[y // 14, x // 14]
        inside = patches == PATCH_CLASSES["shape"].index(card.shape)
        assert inside.mean() > 0.85  # patches whose middle is just outside the square have some ink
        assert names_of(classes, "colour") == {"none", card.colour}
        assert names_of(classes, "shape") == {"none", card.shape}


def test_a_colour_without_a_name_is_unknown_and_no_card_has_no_class():
    rng = np.random.default_rng(1)
    shown, _ = patch_classes(show_card(rng, Card(None, "bolt"), 1)[0], ACROSS, Card(None, "bolt"))
    assert names_of(shown, "colour") == {"none", None} and names_of(shown, "shape") == {"none", "bolt"}
    for family in families(held_out=False):
        classes, _ = patch_classes(make_clip(rng, family, 1)[0], ACROSS, None)
        assert names_of(classes, "colour") == names_of(classes, "shape") == {"none"}


def test_shapes_of_scenes_teach_no_held_out_combination():
    for card in (*all_cards("validation"), *all_cards("test")):
        numbers = blank(1)
        glyph(numbers, 0, card.shape, COLOURS[card.colour])
        assert names_of(patch_classes(numbers[0], ACROSS, None)[0], "glyph") == {"none", None}
    numbers = blank(1)
    glyph(numbers, FIRST_SLOT, "circle", COLOURS["red"])
    assert names_of(patch_classes(numbers[0], ACROSS, None)[0], "glyph") == {"none", "circle"}


def left_out(never, attribute):
    """Names of the classes that are left out in the patches of an attribute, one set for each number."""
    row = never[list(PATCH_CLASSES).index(attribute)]
    names = PATCH_CLASSES[attribute]
    return {frozenset(name for place, name in enumerate(names) if number >> place & 1) for number in np.unique(row)}


def test_what_training_never_shows_is_left_out_of_the_choice():
    """A yellow ring is told from all shapes but those that training never has in yellow."""
    rng = np.random.default_rng(2)
    card = Card("yellow", "ring")
    _, never = patch_classes(show_card(rng, card, 1)[0], ACROSS, card)
    tested = (*all_cards("validation"), *all_cards("test"))
    assert left_out(never, "shape") == {frozenset(), frozenset(c.shape for c in tested if c.colour == "yellow")}
    assert left_out(never, "colour") == {frozenset(), frozenset(c.colour for c in tested if c.shape == "ring")}
    numbers = blank(1)
    glyph(numbers, 0, "7", COLOURS["yellow"])
    _, never = patch_classes(numbers[0], ACROSS, None)
    assert left_out(never, "glyph") == {frozenset(), frozenset(c.shape for c in tested if c.colour == "yellow")}
    assert left_out(never, "shape") == left_out(never, "colour") == {frozenset()}


def test_what_is_there_is_never_left_out():
    rng = np.random.default_rng(3)
    cards = [*all_cards("training"), *(Card(None, shape) for shape in SHAPES * 4)]
    frames = [(overlay_card(rng, blank(1), card)[0], card) for card in cards]
    frames += [(make_clip(rng, family, 1)[0], None) for family in families(held_out=False) * 8]
    some = 0
    for numbers, card in frames:
        classes, never = patch_classes(numbers, ACROSS, card)
        known = classes != UNKNOWN
        assert not (never[known] >> classes[known] & 1).any()
        some += int((never > 0).any())
    assert some > 40
