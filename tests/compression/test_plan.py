"""The window plan, against its formulas and a literal simulation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from videoxl.compression.base import get_compressor
from videoxl.compression.beacon.layout import beacon_positions, token_positions
from videoxl.compression.plan import RatioChooser, SpanPlanner, check_ratios, plan_span
from videoxl.errors import PlanError


def chooser(ratios, mix="step-random", window=1440, length=None, positions=32768):
    return RatioChooser(ratios, mix, window, positions, length)


def walk(num_tokens: int, window: int, ratio: int) -> list[int]:
    """A plain simulation: the visual span's token numbers after which a beacon is put."""
    beacons, since = [], 0
    for token in range(num_tokens):
        since += 1
        if since == ratio:
            beacons.append(token)
            since = 0
    return beacons


@given(st.integers(1, 5000), st.integers(1, 600), st.integers(1, 600))
def test_every_token_is_read_once_and_beacons_follow_every_ratio_tokens(num_tokens, window, ratio):
    ratio = min(ratio, window)
    steps = list(plan_span(num_tokens, window, chooser([ratio], window=window)))
    assert [token for step in steps for token in range(step.start, step.stop)] == list(range(num_tokens))
    placed, remainder = [], 0
    for step in steps:
        assert step.remainder == remainder
        assert step.num_groups == (step.num_tokens + remainder) // ratio
        remainder = (step.num_tokens + remainder) % ratio
        assert step.remainder_after == remainder
        sequence = sorted([(p, "t") for p in token_positions(step)] + [(p, "b") for p in beacon_positions(step)])
        assert [place for place, _ in sequence] == list(range(step.num_tokens + step.num_groups))
        seen = step.start
        for _, kind in sequence:
            seen += kind == "t"
            if kind == "b":
                placed.append(seen - 1)
    assert placed == walk(num_tokens, window, ratio)
    spans = [span for step in steps for span in step.group_spans()]
    assert spans == [(last - ratio + 1, last + 1) for last in placed]


@given(st.integers(1, 3000), st.integers(1, 500))
def test_ratio_0_keeps_every_token(num_tokens, window):
    steps = list(plan_span(num_tokens, window, chooser([0], window=window)))
    assert sum(get_compressor().num_kept(step) for step in steps) == num_tokens
    assert all(step.num_groups == 0 and step.remainder_after == 0 for step in steps)


@given(st.lists(st.integers(1, 700), min_size=1, max_size=20), st.sampled_from([1, 2, 7, 8, 32]))
def test_a_span_that_grows_is_planned_like_a_whole_one(pieces, ratio):
    window, pending, steps = 240, 0, []
    planner = SpanPlanner(window, chooser([ratio], window=window))
    for piece in pieces:
        pending += piece
        while pending >= window:
            steps.append(planner.next_window(pending))
            pending -= window
    if pending:
        steps.append(planner.next_window(pending))
    assert steps == list(plan_span(sum(pieces), window, chooser([ratio], window=window)))


def test_step_random_draws_the_published_ratios():
    drawing = chooser([2, 4, 8])
    rng = np.random.default_rng(42)
    assert [drawing.next() for _ in range(50)] == [rng.choice([2, 4, 8]) for _ in range(50)]
    assert len({chooser([2, 4, 8]).next() for _ in range(5)}) == 1  # a fresh generator for every sequence


def test_only_ratios_that_divide_the_window_are_drawn():
    drawing = chooser([7, 8, 1440])
    assert {drawing.next() for _ in range(40)} == {8, 1440}


def test_instance_random_draws_once_and_sequence_cycles():
    once = chooser([2, 4, 8, 16], "instance-random")
    assert len({once.next() for _ in range(20)}) == 1
    turn = chooser([2, 4, 8], "sequence")
    assert [turn.next() for _ in range(5)] == [2, 4, 8, 2, 4]


def test_adapt_takes_the_smallest_ratio_that_reaches():
    reach_4 = (32768 - 1440) * 4 + 1440
    assert chooser([2, 4, 8], "adapt-100", length=reach_4 - 100).next() == 4
    assert chooser([2, 4, 8], "adapt-100", length=reach_4 - 99).next() == 8
    assert chooser([2, 4, 8], "adapt-100", length=10**9).next() == 8
    with pytest.raises(PlanError, match="length of the whole sequence"):
        chooser([2, 4], "adapt-100").next()


def test_a_fork_draws_the_same_without_moving_the_original():
    drawing = chooser([2, 4, 8])
    drawing.next()
    fork = drawing.fork()
    ahead = [fork.next() for _ in range(10)]
    assert [drawing.next() for _ in range(10)] == ahead


@pytest.mark.parametrize(
    ("ratios", "said"),
    [([], "empty"), ([-1], "-1"), ([1441], "1441"), ([2.5], "2.5"), ([7, 11], "none of"), ([True], "True")],
)
def test_ratios_that_cannot_be_served_are_named(ratios, said):
    with pytest.raises(PlanError, match=said):
        check_ratios(ratios, 1440)


def test_an_unknown_mix_is_named():
    with pytest.raises(PlanError, match="beacon_ratio_mix is 'often'"):
        chooser([2, 4], "often").next()
