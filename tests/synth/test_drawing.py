"""The pictures of the synthetic world: drawn from numbers, the same from a stream and from a file."""

import numpy as np
import pytest
import torch

from videoxl.errors import DataError
from videoxl.synth import story
from videoxl.synth.cards import (
    COLOURS,
    FAR,
    FIRST_SLOT,
    NUM_TESTED,
    Card,
    all_cards,
    draw_cards,
    draw_ink,
    overlay_card,
    show_card,
)
from videoxl.synth.drawing import B, DrawnFrames, G, draw, glyphs_of
from videoxl.synth.glyphs import NAMES, SHAPES, SIDE, glyph_masks
from videoxl.synth.scenes import CHARACTERS, FAMILIES, HELD_OUT, families, make_clip
from videoxl.synth.story import tell


def rng(seed=0):
    return np.random.default_rng(seed)


def test_every_glyph_fills_a_part_of_its_square_and_no_two_look_alike():
    masks = glyph_masks()
    assert masks.shape == (len(NAMES), SIDE, SIDE)
    shares = masks.mean(dim=(1, 2))
    assert ((shares > 0.03) & (shares <= 1)).all()
    flat = masks.flatten(1)
    apart = (flat[:, None] - flat[None]).abs().mean(dim=2) + torch.eye(len(NAMES))
    assert apart.min() > 0.015


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_drawn_in_bounds_and_depends_on_its_seed_alone(family):
    first, again, other = make_clip(rng(3), family, 4), make_clip(rng(3), family, 4), make_clip(rng(4), family, 4)
    assert np.isfinite(first).all() and np.array_equal(first, again) and not np.array_equal(first, other)
    frames = draw(torch.from_numpy(first), 56)
    assert frames.shape == (4, 56, 56, 3) and frames.dtype == torch.uint8


@pytest.mark.parametrize("overlaid", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_card_shows_its_colour_on_light_paper(shape, overlaid):
    scene = make_clip(rng(1), "gradients", 1)
    scene[:, :6] = 0.0  # black, so that the paper is all that is bright
    card = Card("red", shape)
    numbers = overlay_card(rng(), scene, card) if overlaid else show_card(rng(), card, 1)
    pixels = draw(torch.from_numpy(numbers), 168)[0].float() / 255
    is_red = (pixels - torch.tensor(COLOURS["red"])).abs().amax(dim=-1) < 0.12
    is_paper = pixels.amin(dim=-1) > 0.85
    least = 0.01 if overlaid else 0.04
    assert is_red.float().mean() > least and is_paper.float().mean() > least


@pytest.mark.parametrize("shape", SHAPES)
def test_a_colour_without_a_name_is_never_that_of_a_test_card(shape):
    held_out = [COLOURS[card.colour] for card in (*all_cards("validation"), *all_cards("test")) if card.shape == shape]
    inks = np.stack([draw_ink(rng(seed), shape) for seed in range(200)])
    for colour in held_out:
        assert (np.abs(inks - np.array(colour)).max(axis=1) > FAR).all()
    assert inks.std(axis=0).min() > 0.2  # all over the colours there are


def test_a_card_over_a_flash_keeps_its_light():
    scene = make_clip(rng(1), "flashes", 6)
    assert len(set(scene[:, B["light"]])) > 1
    assert (overlay_card(rng(), scene, Card("brown", "star"))[:, B["light"]] == 1).all()


def test_frames_drawn_together_and_one_by_one_are_equal():
    numbers = torch.from_numpy(np.concatenate([make_clip(rng(2), family, 2) for family in FAMILIES]))
    together = draw(numbers, 56)
    assert torch.equal(together, torch.cat([draw(one[None], 56) for one in numbers]))
    drawn = DrawnFrames(numbers, [len(numbers)], 56)
    assert torch.equal(together, torch.cat([part.draw("cpu") for part in drawn.chunks(5)]))


def test_the_worlds_share_no_card():
    training, validation, test = (set(all_cards(world)) for world in ("training", "validation", "test"))
    assert len(training) == len(COLOURS) * len(SHAPES) - 32 and len(validation) == len(test) == 16
    assert not training & validation and not training & test and not validation & test
    for card in validation | test:  # its colour and its shape are both learnt, apart from each other
        assert {other.shape for other in training if other.colour == card.colour} > set(SHAPES[NUM_TESTED:])
        assert {other.colour for other in training if other.shape == card.shape} > set(list(COLOURS)[NUM_TESTED:])
    for held_out in (validation, test):
        assert {card.colour for card in held_out} == set(list(COLOURS)[:NUM_TESTED])
        assert {card.shape for card in held_out} == set(SHAPES[:NUM_TESTED])
    assert HELD_OUT not in families(held_out=False) and HELD_OUT in families(held_out=True)


def test_the_sample_videos_card_is_of_the_training_world():
    assert Card("blue", "star").world == "training"  # no validation and no test uses it


def test_a_world_that_there_is_not_is_refused():
    with pytest.raises(DataError, match="there is no world False; there are training, validation, test"):
        draw_cards(rng(), 1, False)


@pytest.mark.parametrize("number", range(7))
def test_cards_of_one_video_share_neither_colour_nor_shape(number):
    for seed in range(20):
        cards = draw_cards(rng(seed), number, ("training", "validation", "test")[seed % 3])
        assert len({card.colour for card in cards}) == len({card.shape for card in cards}) == number


@pytest.mark.parametrize("depth, wanted", [(0.0, 0), (0.5, 50), (1.0, 99)])
def test_a_needle_lies_at_its_depth(depth, wanted):
    story = tell(rng(), 100, draw_cards(rng(), 1, "training"), ["waves"], depth, card_frames=(1, 1))
    assert abs(story.shown[0][0] - wanted) <= 1 and story.shown[0][1] == story.shown[0][0] + 1
    assert len(story.numbers) == 100


def test_cards_of_a_story_come_in_order_with_scenes_between():
    for seed in range(30):
        cards = draw_cards(rng(seed), 4, "training")
        story = tell(rng(seed), 32, cards)
        assert [c.name for c in story.cards] == [c.name for c in cards] and len(story.shown) == 4
        for (_, stop), (first, _) in zip(story.shown, story.shown[1:]):
            assert first > stop
        assert all(card.name in story.in_words() for card in cards)


def test_a_video_file_shows_the_streamed_pictures(tmp_path):
    pytest.importorskip("av")
    from videoxl.media.choice import FrameChoice
    from videoxl.media.pixels import VideoXLImageProcessor
    from videoxl.media.stream import open_video
    from videoxl.synth.files import write_video

    story = tell(rng(5), 24, draw_cards(rng(5), 2, "training"))
    write_video(tmp_path / "story.mp4", story.numbers, 112)
    with open_video(str(tmp_path / "story.mp4"), VideoXLImageProcessor(112), FrameChoice(fps=1.0)) as stream:
        read = np.concatenate([chunk.frames for chunk in stream])
    streamed = draw(torch.from_numpy(story.numbers), 112).numpy()
    assert read.shape == streamed.shape
    error = np.abs(read.astype(float) - streamed).mean(axis=(1, 2, 3))
    assert error.max() < 8  # levels of 255, lost in video coding
    others = np.abs(read[:-1].astype(float) - streamed[1:]).mean(axis=(1, 2, 3))
    changes = np.abs(streamed[:-1].astype(float) - streamed[1:]).mean(axis=(1, 2, 3)) > 20
    assert changes.any() and (others[changes] > error[:-1][changes]).all()  # no frame is off by one


def test_a_story_in_words_needs_no_frames():
    cards = draw_cards(rng(8), 2, "training")
    story = tell(rng(8), 24, cards, drawn=False)
    assert len(story.numbers) == 0 and story.cards == cards and len(story.shown) == 2
    assert all(f"card with a {card.name}" in story.in_words() for card in cards)


def test_no_character_on_a_card_has_the_colour_of_a_card_that_is_asked_for(monkeypatch):
    """And nothing else of the story changes."""
    inks = [FIRST_SLOT + 2, slice(G["red"], G["blue"] + 1)]
    changed = 0
    for seed in range(60):
        cards = draw_cards(rng(seed), 1 + seed % 6, "training")
        told = tell(rng(seed), 40, cards, ["empty cards"], overlaid=1.0).numbers
        with monkeypatch.context() as patch:
            patch.setattr(story, "keep_apart", lambda *_: None)
            before = tell(rng(seed), 40, cards, ["empty cards"], overlaid=1.0).numbers
        for glyph in glyphs_of(told)[:, FIRST_SLOT + 2]:
            if NAMES[int(glyph[G["glyph"]])] in CHARACTERS and glyph[G["opacity"]] > 0:
                ink = glyph[G["red"] : G["blue"] + 1]
                assert all(np.abs(ink - COLOURS[card.colour]).max() > FAR for card in cards)
        changed += not np.array_equal(told, before)
        glyphs_of(before)[:, *inks] = glyphs_of(told)[:, *inks]
        assert np.array_equal(told, before)
    assert changed > 8
