"""Questions about stories, with answers.

Except for questions about a letter, the options do not give the answer away. In a choice among cards, every colour and
every shape is in equally many options. In tests, each number of a row is right equally often. Letters are uniform. (In
training, 1 is right in half of the rows that contain it, since videos with one card allow fewer other questions. Which
of two or three cards is first or last can be guessed in 28 % of cases, but no test asks it.)
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np

from videoxl.chat import SELECT_MESSAGE, SYSTEM_MESSAGE
from videoxl.synth.cards import COLOUR_NAMES, NUM_TESTED, Card, World, all_cards, draw_cards
from videoxl.synth.glyphs import SHAPES

ADVERTISEMENT = "Does this video contain any inserted advertisement? If yes, which is the content of the ad?"
NONE_SUCH = "There is no such card."
BY_LETTER = "Answer with the option's letter."
MOST_CARDS = 6
ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth")
_TRIALS = 100
PUBLISHED_STYLES = 0.4  # share of choices that are written as the published evaluations write them
SELECT_SHARE = 0.2  # share of batches after VNBench's system message
NAMELESS = 0.4  # share of videos with one card whose colour has no name


@dataclass(frozen=True)
class Question:
    """One question. `options` is empty for an open question; `right` is the index of the right option."""

    kind: str
    text: str
    answer: str
    options: tuple[str, ...] = ()
    right: int = -1

    def turned(self, right: int) -> Question:
        """The same question with its options rotated so that the right one is at index `right` (VNBench's tries)."""
        shift = right - self.right
        options = tuple(self.options[(place - shift) % len(self.options)] for place in range(len(self.options)))
        return _choice(self.kind, self.head, options, right)

    def as_vnbench(self) -> Question:
        """The same as VNBench asks it."""
        options = "\n".join(f"({letter}) {option}" for letter, option in zip("ABCD", self.options))
        text = f"Question: {self.head}\nOptions:\n{options}\n"
        return replace(self, text=text, answer=f"({self.answer}) {self.options[self.right]}")

    def as_needle(self) -> Question:
        """The same as the needle-in-a-haystack evaluation asks it, which begins the answer itself."""
        options = "\n".join(f"({letter}) {option}" for letter, option in zip("ABCD", self.options))
        text = f"Question: {self.head} Response the correct choice only.\nOptions:{options}\nChoose the best option."
        return replace(self, text=text, answer=f"Best option:({self.answer}) {self.options[self.right]}")

    @property
    def head(self) -> str:
        """The question of a choice without its options."""
        return self.text[: self.text.index("\nA. ")]


def _choice(kind: str, text: str, options: Sequence[str], right: int) -> Question:
    lines = [f"{letter}. {option}" for letter, option in zip("ABCD", options)]
    return Question(kind, "\n".join([text, *lines, BY_LETTER]), "ABCD"[right], tuple(options), right)


def _shuffled_choice(rng: np.random.Generator, kind: str, text: str, right: str, wrong: Sequence[str]) -> Question:
    options = [right, *wrong]
    order = rng.permutation(len(options))
    return _choice(kind, text, [options[place] for place in order], int(np.flatnonzero(order == 0)[0]))


def choose_card(rng: np.random.Generator, cards: Sequence[Card], world: World) -> Question:
    """Which of four cards is in the video."""
    right = cards[rng.integers(len(cards))]
    absent = _others_in_grid(rng, right, cards, world) if rng.random() < 0.5 else None
    if absent is None:
        absent = _others_apart(rng, right, cards, world)
    text = "Which card is shown in this video?"
    return _shuffled_choice(rng, "card", text, right.name, [card.name for card in absent])


def _others_in_grid(rng: np.random.Generator, right: Card, cards: Sequence[Card], world: World) -> list[Card] | None:
    """The other three cards of a 2 x 2 grid of colours and shapes, none of them shown; None if no grid is found."""
    shown_elsewhere = set(all_cards(world)).difference(cards)
    for _ in range(_TRIALS):
        colour, shape = COLOUR_NAMES[rng.integers(len(COLOUR_NAMES))], SHAPES[rng.integers(len(SHAPES))]
        if colour != right.colour and shape != right.shape:
            grid = [Card(colour, shape), Card(colour, right.shape), Card(right.colour, shape)]
            if shown_elsewhere.issuperset(grid):
                return grid
    return None


def _others_apart(rng: np.random.Generator, right: Card, cards: Sequence[Card], world: World) -> list[Card]:
    """Three more that share neither colour nor shape with the right one or each other, none of them shown."""
    while True:
        chosen = [right]
        pool = [card for card in all_cards(world) if card not in cards]
        while len(chosen) < 4:
            pool = [card for card in pool if card.colour != chosen[-1].colour and card.shape != chosen[-1].shape]
            if not pool:
                break
            chosen.append(pool[rng.integers(len(pool))])
        if len(chosen) == 4:
            return chosen[1:]


def choose_colour(rng: np.random.Generator, cards: Sequence[Card], world: World) -> Question:
    right = cards[rng.integers(len(cards))]
    wrong = _other_names(rng, right, "colour", COLOUR_NAMES, world)
    return _shuffled_choice(rng, "colour", f"What colour is the {right.shape} on the card?", right.colour, wrong)


def choose_shape(rng: np.random.Generator, cards: Sequence[Card], world: World) -> Question:
    right = cards[rng.integers(len(cards))]
    wrong = _other_names(rng, right, "shape", SHAPES, world)
    text = f"What is the shape of the {right.colour} thing on the card?"
    return _shuffled_choice(rng, "shape", text, right.shape, wrong)


def _other_names(
    rng: np.random.Generator, right: Card, attribute: str, names: Sequence[str], world: World
) -> list[str]:
    """Three more colours or shapes that the card could have in its world."""
    known = names if world == "training" else names[:NUM_TESTED]
    cards = [(name, right._replace(**{attribute: name})) for name in known]
    possible = [name for name, card in cards if card != right and (world != "training" or not card.is_held_out)]
    return rng.permutation(possible)[:3].tolist()


def open_colour(rng: np.random.Generator, cards: Sequence[Card], world: World) -> Question:
    card = cards[rng.integers(len(cards))]
    return Question("open colour", f"What colour is the {card.shape} on the card?", card.colour)


def open_shape(rng: np.random.Generator, cards: Sequence[Card], world: World) -> Question:
    card = cards[rng.integers(len(cards))]
    return Question("open shape", f"What is the shape of the {card.colour} thing on the card?", card.shape)


def lone_shape(rng: np.random.Generator, cards: Sequence[Card], world: World) -> Question:
    """Of the only card, whatever its colour is called."""
    return Question("lone shape", "What is the shape on the card?", cards[0].shape)


def choose_lone_shape(rng: np.random.Generator, cards: Sequence[Card], world: World) -> Question:
    wrong = rng.permutation([name for name in SHAPES if name != cards[0].shape])[:3]
    return _shuffled_choice(rng, "lone shape", "What is the shape on the card?", cards[0].shape, wrong.tolist())


def is_shape_shown(rng: np.random.Generator, cards: Sequence[Card], world: World) -> Question:
    """Yes and no are equally likely, whatever the shape."""
    shape, answer = cards[0].shape, "yes"
    if rng.random() < 0.5:
        others = [name for name in SHAPES if name != shape]
        shape, answer = others[rng.integers(len(others))], "no"
    return Question("is shape shown", f"Is there a card with a {shape} in this video?", answer)


def is_shown(rng: np.random.Generator, cards: Sequence[Card], world: World) -> Question:
    """Yes and no are equally likely, whatever the card."""
    if cards and rng.random() < 0.5:
        card, answer = cards[rng.integers(len(cards))], "yes"
    else:
        pool = [card for card in all_cards(world) if card not in cards]
        card, answer = pool[rng.integers(len(pool))], "no"
    return Question("is shown", f"Is there a card with a {card.name} in this video?", answer)


def no_such(rng: np.random.Generator, cards: Sequence[Card], world: World) -> Question:
    """About a shape that no card has."""
    names = SHAPES if world == "training" else SHAPES[:NUM_TESTED]
    absent = [shape for shape in names if shape not in {card.shape for card in cards}]
    shape = absent[rng.integers(len(absent))]
    return Question("no such", f"What colour is the {shape} on the card?", NONE_SUCH)


def advertisement(rng: np.random.Generator, cards: Sequence[Card], world: World) -> Question:
    """The quick start's question."""
    names = " and ".join(f"a {card.name}" for card in cards)
    return Question("advertisement", ADVERTISEMENT, f"Yes, {names}." if cards else "No.")


def count(rng: np.random.Generator, cards: Sequence[Card], world: World) -> Question:
    return Question("count", "How many cards are shown in this video?", str(len(cards)))


def choose_count(rng: np.random.Generator, cards: Sequence[Card], world: World, first: int | None = None) -> Question:
    """Four numbers in a row from `first` on (None: any row of 1 to `MOST_CARDS` that holds the right one)."""
    text = "How many cards are shown in this video?"
    if first is None:
        first = int(rng.integers(max(1, len(cards) - 3), min(len(cards), MOST_CARDS - 3) + 1))
    wrong = [str(number) for number in range(first, first + 4) if number != len(cards)]
    return _shuffled_choice(rng, "counting", text, str(len(cards)), wrong)


def first_card(rng: np.random.Generator, cards: Sequence[Card], world: World) -> Question:
    if rng.random() < 0.5:
        return Question("first", "Which card is shown first?", cards[0].name)
    return Question("last", "Which card is shown last?", cards[-1].name)


def choose_first(rng: np.random.Generator, cards: Sequence[Card], world: World) -> Question:
    """Among the cards that are shown, filled up with others."""
    which = rng.random() < 0.5
    right, *others = cards if which else cards[::-1]
    wrong = [others[place].name for place in rng.permutation(len(others))[:3]]
    absent = [card.name for card in all_cards(world) if card not in cards]
    while len(wrong) < 3:
        wrong.append(absent.pop(int(rng.integers(len(absent)))))
    text = f"Which card is shown {'first' if which else 'last'}?"
    return _shuffled_choice(rng, "choose first" if which else "choose last", text, right.name, wrong)


def nth_card(rng: np.random.Generator, cards: Sequence[Card], world: World) -> Question:
    place = int(rng.integers(len(cards)))
    return Question("nth", f"Which card is the {ORDINALS[place]} one?", cards[place].name)


def place_of(rng: np.random.Generator, cards: Sequence[Card], world: World) -> Question:
    """The place of a card: what a choice among orders needs for each card."""
    place = int(rng.integers(len(cards)))
    text = f"Which place among the cards has the {cards[place].name}?"
    return Question("place", text, ORDINALS[place])


def next_card(rng: np.random.Generator, cards: Sequence[Card], world: World) -> Question:
    place = int(rng.integers(len(cards) - 1))
    return Question("next", f"Which card is shown next after the {cards[place].name}?", cards[place + 1].name)


def is_before(rng: np.random.Generator, cards: Sequence[Card], world: World) -> Question:
    """Yes and no are equally likely."""
    first, second = rng.choice(len(cards), 2, replace=False)
    text = f"Is the {cards[first].name} shown before the {cards[second].name}?"
    return Question("is before", text, "yes" if first < second else "no")


def list_cards(rng: np.random.Generator, cards: Sequence[Card], world: World) -> Question:
    text = "List the cards in the order in which they are shown."
    return Question("list", text, ", ".join(card.name for card in cards))


def choose_order(rng: np.random.Generator, cards: Sequence[Card], world: World) -> Question:
    """Four of the orders in which the first four cards could come."""
    names = [card.name for card in cards[:4]]
    orders: list[str] = []
    while len(orders) < 3:
        order = ", ".join(names[place] for place in rng.permutation(len(names)))
        if order not in orders and order != ", ".join(names):
            orders.append(order)
    text = "In which order are the cards shown?"
    return _shuffled_choice(rng, "ordering", text, ", ".join(names), orders)


def letter_of(rng: np.random.Generator, cards: Sequence[Card], world: World) -> Question:
    """The letter of any of the options: half of what a choice asks for, independent of the story."""
    choice = _ask_one(rng, cards, world, CHOICES)
    place = int(rng.integers(len(choice.options)))
    return _choice("letter", f"Which letter stands before {choice.options[place]}?", choice.options, place)


Maker = Callable[[np.random.Generator, Sequence[Card], World], Question]
# Colours and shapes weigh more than cards: a card has two features to recognise it by, a colour or shape only one. Of
# models trained with cards at twice the weight, five in six errors were about colours or shapes.
# (maker, least cards, most cards, weight)
NEEDLES: tuple[tuple[Maker, int, int, float], ...] = (
    (choose_card, 1, MOST_CARDS, 2.0),
    (choose_colour, 1, MOST_CARDS, 2.25),
    (choose_shape, 1, MOST_CARDS, 2.25),
    (open_colour, 1, MOST_CARDS, 0.75),
    (open_shape, 1, MOST_CARDS, 0.75),
    (is_shown, 0, MOST_CARDS, 1.0),
    (advertisement, 0, 2, 1.0),
)
LONE: tuple[tuple[Maker, int, int, float], ...] = (
    (lone_shape, 1, 1, 1.0),
    (choose_lone_shape, 1, 1, 2.0),
    (is_shape_shown, 1, 1, 1.0),
)
RELATIONS: tuple[tuple[Maker, int, int, float], ...] = (
    (no_such, 0, MOST_CARDS, 1.0),
    (count, 0, MOST_CARDS, 1.5),
    (choose_count, 1, MOST_CARDS, 3.0),
    (first_card, 2, MOST_CARDS, 1.0),
    (nth_card, 2, MOST_CARDS, 1.0),
    (place_of, 2, MOST_CARDS, 6.0),
    (next_card, 2, MOST_CARDS, 1.0),
    (is_before, 2, MOST_CARDS, 1.5),
    (choose_first, 2, MOST_CARDS, 2.0),
    (list_cards, 2, 4, 2.0),
    (choose_order, 3, 4, 5.0),
)
CHOICES: tuple[tuple[Maker, int, int, float], ...] = (
    (choose_card, 1, MOST_CARDS, 1.0),
    (choose_colour, 1, MOST_CARDS, 1.0),
    (choose_shape, 1, MOST_CARDS, 1.0),
    (choose_first, 2, MOST_CARDS, 1.0),
    (choose_order, 3, 4, 1.0),
)
SIMPLE = 0.4  # factor on a stage's share of relations for videos with at most one card, which have little to relate


def ask(
    rng: np.random.Generator,
    cards: Sequence[Card],
    number: int,
    world: World = "training",
    relations: float = 0.25,
    letters: float = 0.0,
) -> list[Question]:
    """`number` questions about a video with these cards.

    Args:
        letters: share of those about an option's letter, where there are cards with named colours.
        relations: share of the others about order, number or absence.
    """
    share = relations if len(cards) > 1 else SIMPLE * relations
    questions = []
    for _ in range(number):
        if any(card.colour is None for card in cards):
            question = _ask_one(rng, cards, world, LONE)
        elif letters and cards and rng.random() < letters:
            question = letter_of(rng, cards, world)
        else:
            question = _ask_one(rng, cards, world, RELATIONS if rng.random() < share else NEEDLES)
        questions.append(_styled(rng, question))
    return questions


def _styled(rng: np.random.Generator, question: Question) -> Question:
    """Some choices in the style of a published benchmark."""
    if not question.options or rng.random() >= PUBLISHED_STYLES:
        return question
    return question.as_vnbench() if rng.random() < 0.5 else question.as_needle()


def draw_system_message(rng: np.random.Generator) -> str:
    """System message of all conversations of a batch, whose rows must be equally long before the video."""
    return SELECT_MESSAGE if rng.random() < SELECT_SHARE else SYSTEM_MESSAGE


def _ask_one(rng: np.random.Generator, cards: Sequence[Card], world: World, makers) -> Question:
    fitting = [(maker, weight) for maker, least, most, weight in makers if least <= len(cards) <= most]
    reached = list(accumulate(weight for _, weight in fitting))
    return fitting[bisect_right(reached, rng.random() * reached[-1])][0](rng, cards, world)


def draw_number_of_cards(rng: np.random.Generator, most: int, several: bool = False) -> int:
    """How many cards a training video has: most often one, or mostly several."""
    shares = (0.08, 0.24, 0.12, 0.21, 0.23, 0.06, 0.06) if several else (0.10, 0.34, 0.10, 0.14, 0.20, 0.06, 0.06)
    reached = list(accumulate(shares[: most + 1]))
    return bisect_right(reached, rng.random() * reached[-1])


def sample_cards(rng: np.random.Generator, most: int, world: World = "training", several: bool = False) -> list[Card]:
    """Cards of one video; in the training world a single one may have a colour without a name."""
    cards = draw_cards(rng, draw_number_of_cards(rng, most, several), world)
    if len(cards) == 1 and world == "training" and rng.random() < NAMELESS:
        return [Card(None, cards[0].shape)]
    return cards
