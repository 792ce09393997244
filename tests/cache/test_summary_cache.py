"""The summary cache: lengths, compaction, forks that do not see each other."""

from __future__ import annotations

import gc

import pytest
import torch

from videoxl.cache.summary import SummaryCache
from videoxl.compression.plan import Window
from videoxl.errors import PlanError


def fill(cache: SummaryCache, tokens: int, value: float, beacons: int | None = None, windows: int = 1):
    """Keys and values filled with `value`; each of `windows` leaves `beacons` positions of value + 0.5.

    Returns what the queries of the last window, or of the text, saw.
    """
    seen = []
    for index in range(len(cache.layers)):
        step = torch.full((1, 2, windows * tokens, 4), value)
        if beacons is None:
            seen = [cache.update(step, step, index)[0]]
            continue
        left = torch.full((1, 2, windows * beacons, 4), value + 0.5)
        parts = [(tokens, beacons)] * windows
        # Views: the next window is written over them.
        seen = [keys.clone() for keys, _ in cache.update_windows(step, step, index, (left, left), parts)]
    if beacons is not None:
        window = Window(0, tokens - beacons, (tokens - beacons) // beacons, 0)
        cache.close_windows([window] * windows, [beacons] * windows)
    return seen[-1]


def content(cache: SummaryCache) -> list[float]:
    return cache.layers[0].keys[0, 0, :, 0].tolist()


@pytest.mark.parametrize("windows", [1, 3])
def test_a_window_sees_cache_and_itself_and_leaves_its_beacons(windows):
    cache = SummaryCache(2)
    fill(cache, 3, 1.0)
    seen = fill(cache, 10, 2.0, beacons=2, windows=windows)
    assert seen[0, 0, :, 0].tolist() == [1.0] * 3 + [2.5] * 2 * (windows - 1) + [2.0] * 10
    assert content(cache) == [1.0] * 3 + [2.5] * 2 * windows
    fill(cache, 1, 3.0)
    assert content(cache) == [1.0] * 3 + [2.5] * 2 * windows + [3.0]
    assert (cache.get_query_offset(), cache.get_seq_length()) == (4 + 2 * windows, 4 + 8 * windows)
    assert cache.window_ratios == [4] * windows
    assert cache.num_bytes == 2 * 2 * 2 * (4 + 2 * windows) * 4 * 4


def test_positions_that_a_kernel_writes_are_counted_first_and_kept_from_other_holders():
    cache = SummaryCache(1)
    fill(cache, 4, 1.0)
    (layer,) = cache.layers
    keys, values, first = layer.advance(2)
    keys[:, :, first : first + 2], values[:, :, first : first + 2] = 2.0, 2.0
    assert first == 4 and content(cache) == [1.0] * 4 + [2.0] * 2
    fork = cache.fork()
    layer.room_for(1)  # in use, but not counted
    assert layer.length == 6 and not fork.layers[0].has_room_for(1)
    layer.forget_scratch()
    assert fork.layers[0].has_room_for(1) and not fork.layers[0].has_room_for(10_000)
    layer.room_for(1).keys[:, :, 6] = 7.0
    fill(fork, 1, 5.0)  # in storage of its own
    assert content(fork) == [1.0] * 4 + [2.0] * 2 + [5.0] and layer._storage.keys[0, 0, 6, 0] == 7.0


def test_where_a_fresh_layer_is_advanced_storage_is_made_first():
    cache = SummaryCache(1)
    states = torch.zeros(1, 3, 8)  # [B, T, N D]
    keys, _, first = cache.advance(0, 2, states, states, 4)
    assert keys.shape[:2] == (1, 2) and keys.shape[3] == 4 and (first, cache.get_query_offset()) == (0, 2)


def test_forks_grow_apart_in_any_order():
    cache = SummaryCache(1)
    fill(cache, 4, 1.0)
    first, second = cache.fork(), cache.fork()
    fill(first, 2, 2.0)
    fill(second, 3, 3.0)
    fill(cache, 1, 4.0)
    third = first.fork()
    fill(third, 1, 5.0)
    fill(first, 1, 6.0)
    assert content(first) == [1.0] * 4 + [2.0] * 2 + [6.0]
    assert content(second) == [1.0] * 4 + [3.0] * 3
    assert content(cache) == [1.0] * 4 + [4.0]
    assert content(third) == [1.0] * 4 + [2.0] * 2 + [5.0]


def test_a_fork_costs_nothing_until_two_holders_write():
    cache = SummaryCache(1)
    fill(cache, 4, 1.0)
    fork = cache.fork()
    fill(fork, 1, 2.0)
    assert fork.layers[0].keys.data_ptr() == cache.layers[0].keys.data_ptr()
    del fork
    gc.collect()
    before = cache.layers[0].keys.data_ptr()
    fill(cache, 1, 3.0)  # the fork is gone, so its place may be taken
    assert cache.layers[0].keys.data_ptr() == before
    assert content(cache) == [1.0] * 4 + [3.0]


def test_a_fork_of_a_fork_keeps_its_content_when_the_first_fork_dies():
    cache = SummaryCache(1)
    fill(cache, 4, 1.0)
    fork = cache.fork()
    fill(fork, 2, 2.0)
    survivor = fork.fork()
    del fork
    gc.collect()
    fill(cache, 2, 9.0)
    assert content(survivor) == [1.0] * 4 + [2.0] * 2


def test_growth_keeps_content_and_reserve_avoids_it():
    cache = SummaryCache(1)
    cache.reserve(9000)
    fill(cache, 10, 1.0)
    start = cache.layers[0].keys.data_ptr()
    for value in range(2, 6):
        fill(cache, 2000, float(value))
    assert cache.layers[0].keys.data_ptr() == start
    fill(cache, 3000, 6.0)
    assert content(cache) == [1.0] * 10 + [v for value in range(2, 6) for v in [float(value)] * 2000] + [6.0] * 3000


def test_crop_removes_text_and_never_a_window():
    cache = SummaryCache(1)
    fill(cache, 12, 1.0, beacons=4)
    fill(cache, 3, 2.0)
    cache.crop(-2)
    assert content(cache) == [1.5] * 4 + [2.0]
    assert cache.get_seq_length() == 9
    with pytest.raises(PlanError, match="only 1 tokens"):
        cache.crop(-2)
    with pytest.raises(PlanError, match="negative"):
        cache.crop(3)


def test_rows_are_repeated_and_chosen():
    cache = SummaryCache(1)
    fill(cache, 2, 1.0)
    fork = cache.fork()
    fork.batch_repeat_interleave(3)
    assert fork.layers[0].keys.shape == (3, 2, 2, 4)
    assert cache.layers[0].keys.shape[0] == 1
    fork.layers[0].keys[1] = 7.0
    fork.reorder_cache(torch.tensor([1, 1]))
    assert fork.layers[0].keys[:, 0, 0, 0].tolist() == [7.0, 7.0]


def test_a_cache_made_in_inference_mode_grows_outside_of_it():
    cache = SummaryCache(1)
    with torch.inference_mode():
        fill(cache, 4, 1.0)
    with torch.no_grad():
        fill(cache, 1, 2.0)
    assert content(cache) == [1.0] * 4 + [2.0]
