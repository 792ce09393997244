"""What the loss leaves out: names that would make a held-out pair, and nothing else."""

import re
from types import SimpleNamespace

import pytest
import torch

from videoxl.constants import IGNORE_INDEX
from videoxl.model.loading import load_pretrained_model
from videoxl.synth.cards import COLOUR_NAMES, Card
from videoxl.synth.glyphs import SHAPES
from videoxl.synth.stages import find_stage
from videoxl.synth.stream import SyntheticStream
from videoxl.synth.unseen import UnseenPairs

BUNDLE = "assets/videoxl-tiny"


class Pieces:
    """A tokenizer to which a word after a space is one token, and any other its first letter and the rest."""

    def __init__(self):
        self.known: list[str] = []

    def __call__(self, text: str) -> SimpleNamespace:
        pieces = re.findall(r" \w+|(?<!\w)\w|\w+|\W", text)
        self.known += [piece for piece in dict.fromkeys(pieces) if piece not in self.known]
        return SimpleNamespace(input_ids=[self.known.index(piece) for piece in pieces])


@pytest.fixture
def tokenizer():
    return Pieces()


@pytest.fixture
def unseen(tokenizer):
    return UnseenPairs(tokenizer, 200)


def left_out(unseen, tokenizer, text: str, place: int) -> set[str]:
    """Tokens that are left out at one place of a text of which everything is learnt."""
    ids = tokenizer(text).input_ids
    label = unseen.mark(ids, ids)[place]
    assert label & 0xFFFFFFFF == ids[place]
    return {tokenizer.known[token] for token in unseen.table[label >> 32].nonzero().flatten().tolist()}


def held_out(kind: int, other: str) -> set[str]:
    cards = [Card(name, other) if kind == 0 else Card(other, name) for name in (COLOUR_NAMES, SHAPES)[kind]]
    return {f" {card[kind]}" for card in cards if card.is_held_out}


def test_a_card_leaves_out_the_names_that_would_make_a_held_out_one(unseen, tokenizer):
    places = 0
    for colour in COLOUR_NAMES:
        for shape in SHAPES:
            if Card(colour, shape).is_held_out:
                continue
            text = f" card with a {colour} {shape};"
            assert left_out(unseen, tokenizer, text, -3) == held_out(0, shape)
            assert left_out(unseen, tokenizer, text, -2) == held_out(1, colour)
            places += bool(held_out(0, shape)) + bool(held_out(1, colour))
    assert places == 2 * 8 * 8  # every tested name goes with four others only where it is held out


def test_an_answer_alone_belongs_to_the_name_in_its_question(unseen, tokenizer):
    beside_yellow = {" circle", " cross", " diamond", " star"}
    assert held_out(1, "yellow") == beside_yellow
    assert (
        left_out(unseen, tokenizer, "What is the shape of the yellow thing on the card?\n(B) square", -1)
        == beside_yellow
    )
    assert held_out(0, "square") == {" orange", " blue", " red", " cyan"}
    assert left_out(unseen, tokenizer, "What colour is the square on the card?\ngreen", -2) == {
        "o",
        "r",
        "c",
    }  # blue begins like brown


def test_a_token_with_which_a_trained_name_begins_too_is_not_left_out(unseen, tokenizer):
    """Orange squares, hearts, circles and crosses are held out. Orange stars are not, and they begin like squares."""
    assert held_out(1, "orange") == {" square", " heart", " circle", " cross"}
    text = "the shape of the orange thing?\nstar"
    assert (
        left_out(unseen, tokenizer, text, -2) == set()
    )  # hourglasses begin like hearts, and a crescent like both others
    assert left_out(unseen, tokenizer, text, -1) == {"quare"}


def test_only_what_is_learnt_is_marked(unseen, tokenizer):
    ids = tokenizer("a yellow square").input_ids
    labels = [IGNORE_INDEX] * len(ids)
    assert unseen.mark(ids, labels) == labels
    other = tokenizer("Which card is shown first?\nA").input_ids
    assert unseen.mark(other, other) == other


def test_names_of_two_questions_make_no_held_out_pair(unseen, tokenizer):
    """Else the loss of a label that is left out itself would be infinite."""
    assert Card("yellow", "cross").is_held_out
    ids = tokenizer("What colour is the cross on the card?\nThe shape of the yellow thing?").input_ids
    assert unseen.mark(ids, ids) == ids


@pytest.mark.parametrize("name", ["gpu/words", "gpu/clips"])
def test_streams_leave_names_out_and_never_what_has_to_be_learnt(name):
    tokenizer, model, _, _ = load_pretrained_model(BUNDLE, device_map="cpu")
    data = SyntheticStream(find_stage(name), tokenizer, model.config, 576, 336, seed=0)
    marked = 0
    for index in range(100):
        for ids, labels in data[(0, index)].encoded:
            for token, label in zip(ids, labels):
                if label != IGNORE_INDEX:
                    assert label & 0xFFFFFFFF == token
                    hidden, ids_alone = data.label_hook(torch.zeros(1, 640), torch.tensor([label]))
                    assert ids_alone.tolist() == [token] and hidden[0, token] == 0
                    marked += label >> 32 > 0
    assert marked > 300
