"""Questions of the synthetic world: right answers, and options that do not give them away."""

from collections import Counter, defaultdict

import numpy as np
import pytest

from videoxl.synth.cards import COLOUR_NAMES, Card, all_cards, draw_cards
from videoxl.synth.evaluate import interval
from videoxl.synth.questions import (
    MOST_CARDS,
    NEEDLES,
    NONE_SUCH,
    ORDINALS,
    RELATIONS,
    SIMPLE,
    advertisement,
    ask,
    choose_card,
    choose_colour,
    choose_count,
    choose_first,
    choose_order,
    choose_shape,
    count,
    is_before,
    is_shape_shown,
    is_shown,
    letter_of,
    list_cards,
    next_card,
    no_such,
    nth_card,
    place_of,
    sample_cards,
)
from videoxl.synth.testset import TRIES, TestSet

TRAIN = [Card("red", "square"), Card("blue", "star"), Card("cyan", "circle")]


def rng(seed=0):
    return np.random.default_rng(seed)


def questions(maker, number, world="training", cards=1, **kwargs):
    source = rng(1)
    return [maker(source, draw_cards(source, cards, world), world, **kwargs) for _ in range(number)]


@pytest.mark.parametrize("world", ["training", "validation", "test"])
@pytest.mark.parametrize("maker", [choose_card, choose_colour, choose_shape])
def test_the_right_option_is_the_one_on_the_card(maker, world):
    source = rng(2)
    for _ in range(200):
        cards = draw_cards(source, 1, world)
        question = maker(source, cards, world)
        right = question.options[question.right]
        assert right in (cards[0].name, cards[0].colour, cards[0].shape)
        assert len(set(question.options)) == 4 and question.answer == "ABCD"[question.right]
        assert f"\n{question.answer}. {right}\n" in question.text


def test_training_never_names_a_combination_of_the_test_world():
    held_out = [card.name for card in all_cards("test")]
    source = rng(3)
    for _ in range(300):
        cards = draw_cards(source, int(source.integers(1, 5)), "training")
        for question in ask(source, cards, 4, relations=0.5):
            assert not any(name in question.text or name in question.answer for name in held_out)


def guesses(question):
    """What somebody who sees the options alone could pick: letters, and options that are like or unlike the others."""
    words = Counter(word for option in question.options for word in option.replace(",", "").split())
    score = [sum(words[word] for word in option.replace(",", "").split()) for option in question.options]
    number = [float(option) if option.isdigit() else 0.0 for option in question.options]
    middle = np.argsort(number)[1:3]
    yield from ((f"letter {place}", place) for place in range(4))
    yield "commonest words", int(np.argmax(score))
    yield "rarest words", int(np.argmin(score))
    yield "smallest", int(np.argmin(number))
    yield "largest", int(np.argmax(number))
    yield "middle", int(middle[0])
    yield "first by name", int(np.argsort(question.options)[0])
    yield "longest", int(np.argmax([len(option) for option in question.options]))


@pytest.mark.parametrize("task", ["needle", "ordering", "counting"])
def test_no_guess_from_the_options_beats_chance(task):
    """Over the test set itself; every guess must stay near a quarter (99.9 % of a fair coin's spread)."""
    testset, right, total = TestSet(task, 1500, 8, 28), Counter(), 0
    for index in range(len(testset)):
        source = np.random.default_rng([1 << 20, 0, sum(task.encode()), 8, index])
        _, asked, _ = testset._make(source, index)
        question = asked[int(rng(index).integers(len(asked)))]
        total += 1
        for name, place in guesses(question):
            right[name] += place == question.right
    for name, number in right.items():
        low, high = 0.25 - 3.3 * (0.1875 / total) ** 0.5, 0.25 + 3.3 * (0.1875 / total) ** 0.5
        assert low < number / total < high, (name, number / total)


@pytest.mark.parametrize(("maker", "cards"), [(is_shown, 1), (is_shape_shown, 1), (is_before, 3)])
def test_yes_and_no_are_equally_likely(maker, cards):
    answers = Counter(question.answer for question in questions(maker, 2000, cards=cards))
    assert abs(answers["yes"] / 2000 - 0.5) < 0.04


def test_choices_are_also_written_as_the_published_evaluations_write_them():
    asked = choose_colour(rng(), TRAIN[:1], "training")
    letter, option = asked.answer, asked.options[asked.right]
    vnbench, needle = asked.as_vnbench(), asked.as_needle()
    assert vnbench.text.startswith("Question: What colour is the square on the card?\nOptions:\n(A) ")
    assert vnbench.text.endswith("\n") and f"\n({letter}) {option}\n" in vnbench.text
    assert vnbench.answer == f"({letter}) {option}"
    assert needle.text.endswith("\nChoose the best option.") and f"({letter}) {option}\n" in needle.text
    assert needle.answer == f"Best option:({letter}) {option}"
    source, styles = rng(5), Counter()
    for _ in range(500):
        for question in ask(source, TRAIN[:1], 2, relations=0.0):
            styles[question.text.startswith("Question: ") if question.options else None] += 1
    assert 0.3 < styles[True] / (styles[True] + styles[False]) < 0.5


def test_a_colour_without_a_name_is_never_asked_for():
    source, seen = rng(6), Counter()
    for _ in range(300):
        for question in ask(source, [Card(None, "star")], 3, relations=0.5):
            seen[question.kind] += 1
            assert not any(colour in question.text + question.answer for colour in COLOUR_NAMES)
            assert "star" in question.text + question.answer or question.answer in ("no", *"ABCD")
    assert set(seen) == {"lone shape", "is shape shown"}
    cards = [sample_cards(source, 4) for _ in range(400)]
    assert any(each and each[0].colour is None for each in cards)
    assert all(card.colour for _ in range(200) for card in sample_cards(source, 4, "test"))


def test_where_most_videos_have_several_cards_one_is_still_more_frequent_than_two():
    """What is asked for first is how many there are: two as often as one, and one is taken for two."""
    source = rng(6)
    usual, several = ([len(sample_cards(source, 6, several=each)) for _ in range(2000)] for each in (False, True))
    assert sum(number > 1 for number in several) > 0.62 * 2000 > sum(number > 1 for number in usual)
    assert several.count(1) > 1.6 * several.count(2)


def test_four_tries_put_the_right_option_in_every_place():
    for task in ("ordering", "counting"):
        item = TestSet(task, 4, 16, 28)[2]
        assert [question.right for question in item.questions] == list(range(TRIES))
        assert len({question.options[question.right] for question in item.questions}) == 1
        assert all(sorted(q.options) == sorted(item.questions[0].options) for q in item.questions)


@pytest.mark.parametrize("most", [4, MOST_CARDS])
def test_a_row_of_numbers_says_little_about_which_is_right(most):
    """Rows are those of tests, and in none is one number nearly always right. (How often videos with so many cards are
    asked for their number is left aside.)"""
    source, rows = rng(8), defaultdict(Counter)
    for _ in range(6000):
        cards = sample_cards(source, most, several=True)
        asked = cards and cards[0].colour is not None and (len(cards) > 1 or source.random() < SIMPLE)
        if asked:
            question = choose_count(source, cards, "training")
            rows[min(map(int, question.options))][question.options[question.right]] += 1
    assert set(rows) == {1, 2, 3}, "as in tests"
    for numbers in rows.values():
        assert max(numbers.values()) < 0.6 * sum(numbers.values())


def test_answers_about_order_number_and_absence():
    assert count(rng(), TRAIN, "training").answer == "3"
    asked = next_card(rng(), TRAIN, "training")
    place = [card.name for card in TRAIN].index(asked.answer)
    assert f"after the {TRAIN[place - 1].name}?" in asked.text
    assert choose_order(rng(), TRAIN, "training").answer in "ABCD"
    order = choose_order(rng(), TRAIN, "training")
    assert order.options[order.right] == "red square, blue star, cyan circle"
    assert list_cards(rng(), TRAIN, "training").answer == "red square, blue star, cyan circle"
    names = [card.name for card in TRAIN]
    for seed in range(20):
        first, second = (
            names.index(part) for part in is_before(rng(seed), TRAIN, "training").text[7:-1].split(" shown before the ")
        )
        assert is_before(rng(seed), TRAIN, "training").answer == ("yes" if first < second else "no")
    for seed in range(20):
        for cards in (TRAIN[:2], TRAIN):
            end = choose_first(rng(seed), cards, "training")
            assert end.options[end.right] == cards[0 if "first" in end.text else -1].name
            assert len(set(end.options)) == 4 and {card.name for card in cards} <= set(end.options)
    number = choose_count(rng(), TRAIN, "training")
    assert number.options[number.right] == "3"
    absent = no_such(rng(), TRAIN, "training")
    assert absent.answer == NONE_SUCH and not any(card.shape in absent.text for card in TRAIN)


def test_the_letter_of_an_option_is_asked_for_as_often_as_it_is_told_to():
    source = rng(9)
    places = Counter()
    for number in (1, 2, 3, 6) * 100:
        question = letter_of(source, draw_cards(source, number, "training"), "training")
        option = question.text.removeprefix("Which letter stands before ").split("?\n")[0]
        assert question.options[question.right] == option and question.answer == "ABCD"[question.right]
        places[question.answer] += 1
    assert set(places) == set("ABCD") and min(places.values()) > 60
    for letters, (least, most) in {0.0: (0, 0), 0.2: (0.15, 0.25)}.items():
        asked = [each.kind for _ in range(200) for each in ask(source, TRAIN, 5, letters=letters)]
        assert least * len(asked) <= asked.count("letter") <= most * len(asked)
    for cards in ([], [Card(None, "star")]):
        assert not any(each.kind == "letter" for _ in range(50) for each in ask(source, cards, 5, letters=1.0))


def test_a_card_leads_to_its_place_and_a_place_to_its_card():
    source, asked = rng(5), set()
    for _ in range(60):
        cards = draw_cards(source, 4, "training")
        there, back = place_of(source, cards, "training"), nth_card(source, cards, "training")
        asked |= {there.answer, back.text}
        assert cards[ORDINALS.index(there.answer)].name in there.text
        assert back.text == f"Which card is the {ORDINALS[[card.name for card in cards].index(back.answer)]} one?"
    assert asked == {*ORDINALS[:4], *(f"Which card is the {ordinal} one?" for ordinal in ORDINALS[:4])}


def test_the_quick_starts_question_names_the_card_or_says_no():
    assert advertisement(rng(), [], "training").answer == "No."
    assert advertisement(rng(), TRAIN[:1], "training").answer == "Yes, a red square."
    assert advertisement(rng(), TRAIN[:2], "training").answer == "Yes, a red square and a blue star."


def test_every_kind_of_question_comes_up():
    source, seen = rng(4), Counter()
    for _ in range(2000):
        cards = draw_cards(source, int(source.integers(0, 5)), "training")
        seen.update(question.kind for question in ask(source, cards, 2, relations=0.5))
    assert len(seen) >= len(NEEDLES) + len(RELATIONS)


def test_the_interval_of_a_share_holds_it_and_shrinks():
    low, high = interval(98, 100)
    assert low < 0.98 < high and high - low < 0.1
    assert interval(0, 0) == (0.0, 1.0) and interval(0, 10)[0] == 0.0 and interval(10, 10)[1] == 1.0


def test_relations_are_asked_for_less_often_where_there_is_little_to_relate():
    source, shares = rng(7), []
    for cards in (TRAIN[:1], TRAIN):
        asked = [question.kind for _ in range(600) for question in ask(source, cards, 2, relations=0.5)]
        shares.append(
            sum(
                kind in ("count", "counting", "no such", "next", "nth", "place", "is before", "list", "ordering")
                or kind.split()[-1] in ("first", "last")
                for kind in asked
            )
            / 1200
        )
    assert 0.15 < shares[0] < 0.25 and 0.45 < shares[1] < 0.55
