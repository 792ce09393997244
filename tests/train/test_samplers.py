"""Batches of equal plans, the same steps in every process."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from videoxl.errors import DataError
from videoxl.train.data.plans import SamplePlan
from videoxl.train.data.samplers import Grouping, PlanBatchSampler

WINDOW = 1440


def video(frames: int, suffix: int = 9) -> SamplePlan:
    return SamplePlan((16,), (("video", 144 * frames),), suffix)


TEXT = SamplePlan((), (), 20)
GROUPINGS = [
    Grouping(),
    Grouping("relaxed"),
    Grouping("strict"),
    Grouping("relaxed", "ascend"),
    Grouping("strict", "descend"),
    Grouping(by_length=True),
    Grouping(by_length=True, apart=True),
]
PLANS = [video(n % 40 + 1) for n in range(90)] + [TEXT] * 7


def processes(plans, grouping, world: int, batch: int = 2, epoch: int = 0):
    samplers = [PlanBatchSampler(plans, WINDOW, batch, grouping, world, rank) for rank in range(world)]
    for sampler in samplers:
        sampler.set_epoch(epoch)
    return [list(sampler) for sampler in samplers]


@settings(max_examples=60, deadline=None)
@given(
    frames=st.lists(st.integers(0, 25), min_size=8, max_size=60),
    grouping=st.sampled_from(GROUPINGS),
    world=st.integers(1, 4),
    batch=st.integers(1, 3),
)
def test_every_process_has_as_many_batches_and_nothing_is_lost(frames, grouping, world, batch):
    plans = [video(n) if n else TEXT for n in frames]
    try:
        shares = processes(plans, grouping, world, batch)
    except DataError:
        assert grouping.by_stride == "strict"
        return
    assert len({len(share) for share in shares}) == 1
    for share in shares:
        for keys in share:
            assert 1 <= len(keys) <= batch
            assert len({plans[index].key for _, index in keys}) == 1
    seen = Counter(index for share in shares for keys in share for _, index in keys)
    if grouping.by_stride == "strict":
        assert max(seen.values()) == 1
    else:
        assert set(seen) == set(range(len(plans)))
        parts = 2 if grouping.by_length and grouping.apart else 1  # only the last step of each part is filled up
        assert sum(seen.values()) - len(plans) <= parts * (world - 1) * batch


@pytest.mark.parametrize("world", [1, 2, 3])
def test_strict_gives_all_processes_equally_many_windows(world):
    shares = processes(PLANS, Grouping("strict"), world)
    for step in zip(*shares):
        assert len({PLANS[keys[0][1]].num_windows(WINDOW) for keys in step}) == 1
    sampler = PlanBatchSampler(PLANS, WINDOW, 2, Grouping("strict"), world)
    assert sampler.num_left_out == len(PLANS) - sum(len(keys) for share in shares for keys in share)


def test_relaxed_keeps_everything_and_steps_differ_little():
    shares = processes(PLANS, Grouping("relaxed"), 2)
    spread = [abs(PLANS[a[0][1]].num_windows(WINDOW) - PLANS[b[0][1]].num_windows(WINDOW)) for a, b in zip(*shares)]
    assert max(spread[:-1]) <= 1


def test_sorting_orders_steps_by_windows():
    share = processes(PLANS, Grouping("strict", "ascend"), 1)[0]
    numbers = [PLANS[keys[0][1]].num_windows(WINDOW) for keys in share]
    assert numbers == sorted(numbers) and len(set(numbers)) > 2


def test_text_and_pictures_do_not_meet_in_a_step():
    plans = [video(3)] * 12 + [TEXT] * 8
    for step in zip(*processes(plans, Grouping(by_length=True, apart=True), 2, batch=2)):
        assert len({bool(plans[keys[0][1]].spans) for keys in step}) == 1


def test_lengths_are_alike_within_a_step():
    plans = [video(n) for n in range(1, 101)]
    gaps = [
        abs(plans[a[0][1]].length - plans[b[0][1]].length)
        for a, b in zip(*processes(plans, Grouping(by_length=True), 2, 1))
    ]
    random = [abs(plans[a[0][1]].length - plans[b[0][1]].length) for a, b in zip(*processes(plans, Grouping(), 2, 1))]
    assert sum(gaps) * 5 < sum(random)


def test_epochs_differ_and_come_back():
    first, second = (processes(PLANS, Grouping("relaxed"), 1, epoch=epoch)[0] for epoch in (0, 1))
    order = [[index for _, index in keys] for keys in first]
    assert order != [[index for _, index in keys] for keys in second]
    assert {epoch for keys in second for epoch, _ in keys} == {1}
    assert first == processes(PLANS, Grouping("relaxed"), 1)[0]


def test_two_processes_take_the_batches_of_one():
    """So that a run on more GPUs with fewer accumulated batches sees the same steps."""
    one = processes(PLANS, Grouping(), 1)[0]
    two = [keys for step in zip(*processes(PLANS, Grouping(), 2)) for keys in step]
    assert two[: len(one)] == one


def test_strict_without_a_whole_step_is_said():
    with pytest.raises(DataError, match="strict leaves nothing"):
        PlanBatchSampler([video(1), video(11)], WINDOW, 1, Grouping("strict"), 2)
