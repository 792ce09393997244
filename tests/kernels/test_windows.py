"""The kernels of windows give what RoPE, the cache and attention do step by step, and write nowhere else."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from interpreted import by_interpreter

pytest.importorskip("triton", reason="Triton is not installed here; the second environment has it")
from videoxl.compression.plan import Window
from videoxl.kernels import windows
from videoxl.model.decoder import decoder
from videoxl.model.decoder import layers as attention
from videoxl.model.decoder.layers import rotate

pytestmark = by_interpreter


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Several blocks of queries and keys in small examples."""
    monkeypatch.setattr(windows, "BLOCK_QUERIES", 32)
    monkeypatch.setattr(windows, "block_keys", lambda _: (16, 2))


def tables(number: int, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and signed sine [1, number, dim] of random angles."""
    angles = torch.randn(1, number, dim // 2)
    return angles.cos().repeat(1, 1, 2), torch.cat([-angles.sin(), angles.sin()], -1)


def layout(parts) -> tuple[torch.Tensor, torch.Tensor]:
    """(permutation, positions) of windows with beacons at random positions."""
    tokens, beacons, start = [], [], 0
    for length, number in parts:
        chosen = torch.zeros(length, dtype=torch.bool)
        chosen[torch.randperm(length)[:number]] = True
        tokens.append(start + (~chosen).nonzero().flatten())
        beacons.append(start + chosen.nonzero().flatten())
        start += length
    positions = torch.cat([*tokens, *beacons])
    return positions.argsort(), positions


@pytest.mark.parametrize(
    ("batch", "heads", "groups", "dim", "parts", "stored"),
    [
        (1, 4, 2, 32, ((36, 4), (18, 2), (9, 1)), 37),  # neither windows nor what is stored fill whole blocks
        (2, 6, 2, 16, ((72, 8),), 0),  # nothing stored yet
        (1, 3, 3, 32, ((70, 6), (40, 3)), 32),  # heads that are no power of two
    ],
)
def test_windows_equal_the_steps_one_by_one(batch, heads, groups, dim, parts, stored):
    torch.manual_seed(0)
    rows, beacons = (sum(column) for column in zip(*parts))
    permutation, positions = layout(parts)
    query, key, value = (torch.randn(batch, rows, n * dim) for n in (heads, groups, groups))
    rope, memory_rope = tables(rows, dim), tables(beacons, dim)
    cache = [torch.randn(batch, groups, stored + beacons + 5, dim) for _ in range(2)]
    before = [kind.clone() for kind in cache]

    def by_head(x, number):
        return x.view(batch, rows, number, dim).transpose(1, 2)

    keys, values = by_head(key, groups), by_head(value, groups)
    left = rotate(keys[:, :, rows - beacons :], *memory_rope), values[:, :, rows - beacons :]
    turned = [x[:, :, permutation] for x in (rotate(by_head(query, heads), *rope), rotate(keys, *rope), values)]
    outputs, start, before_it = [], 0, 0
    for length, number in parts:
        own = slice(start, start + length)
        seen = [
            torch.cat([old[:, :, :stored], new[:, :, :before_it], x[:, :, own]], 2)
            for old, new, x in zip(before, left, turned[1:])
        ]
        mask = torch.ones(length, seen[0].shape[2], dtype=torch.bool).tril(seen[0].shape[2] - length)
        outputs.append(
            F.scaled_dot_product_attention(turned[0][:, :, own], *seen, attn_mask=mask, scale=0.2, enable_gqa=True)
        )
        start, before_it = start + length, before_it + number
    expected = torch.cat(outputs, 2).transpose(1, 2).flatten(2)[:, positions]

    blocks = windows.query_blocks(parts)
    found = windows.window_attention(
        query, key, value, rope, memory_rope, permutation, positions, blocks, cache, stored, scaling=0.2
    )
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=1e-5)
    for kind, old, new in zip(cache, before, left):
        torch.testing.assert_close(kind[:, :, stored : stored + beacons], new, atol=1e-6, rtol=1e-5)
        assert torch.equal(kind[:, :, :stored], old[:, :, :stored])
        assert torch.equal(kind[:, :, stored + beacons :], old[:, :, stored + beacons :])


@pytest.mark.parametrize("stored", [31, 32, 50, 95])
def test_what_another_kernel_has_begun_is_gone_on_with(stored, monkeypatch):
    """In its place attention step by step, to the first positions of the cache and for all windows at once."""
    seen = []

    class Fast:
        KEYS = 16

        @staticmethod
        def attend_stored(query, cache, stored, scale):
            seen.append(stored)
            query = query.unflatten(2, (4, 16)).transpose(1, 2)
            key, value = (kind[:, :, :stored].repeat_interleave(2, 1) for kind in cache)
            scores = query @ key.transpose(2, 3) * (scale / windows.LOG2_E)
            output = (scores.softmax(-1) @ value).transpose(1, 2).flatten(2).contiguous()
            return output, scores.logsumexp(-1) * windows.LOG2_E

    def run():
        torch.manual_seed(0)
        parts = ((36, 4), (18, 2))
        permutation, positions = layout(parts)
        query, key, value = (torch.randn(2, 54, n * 16) for n in (4, 2, 2))
        cache = [torch.randn(2, 2, stored + 6, 16) for _ in range(2)]
        ropes = tables(54, 16), tables(6, 16)
        blocks = windows.query_blocks(parts)
        return windows.window_attention(query, key, value, *ropes, permutation, positions, blocks, cache, stored, 0.2)

    expected = run()
    monkeypatch.setattr(windows, "_fast_for", lambda *_: Fast)
    monkeypatch.setattr(windows, "STORED_FROM", 32)
    monkeypatch.setattr(windows, "block_keys", lambda _: (32, 2))
    torch.testing.assert_close(run(), expected, atol=2e-6, rtol=1e-5)
    assert seen == ([] if stored < 32 else [stored // 32 * 32])  # whole blocks of both


def test_blocks_cover_every_query_once():
    parts = ((70, 6), (31, 3), (32, 4))
    blocks = windows.query_blocks(parts).tolist()
    covered = sorted(place for first, _, end, _ in blocks for place in range(first, min(first + 32, end)))
    assert covered == list(range(133))
    assert {(start, end, left) for _, start, end, left in blocks} == {(0, 70, 0), (70, 101, 6), (101, 133, 9)}


@torch.inference_mode()
def test_a_model_reads_the_same_with_kernels_as_without(tiny, monkeypatch):
    """Through the model itself, a batch of one and of two, with what a cache holds before and after."""
    _, model, _ = tiny
    steps = [Window(0, 96, 8, 0), Window(0, 40, 4, 0)]
    caches = []
    for by_kernel in (False, True):
        for module in (attention, decoder):
            monkeypatch.setattr(module, "can_run", lambda *_, answer=by_kernel, **__: answer)
        decoder._query_blocks.cache_clear()
        for batch in (1, 2):
            torch.manual_seed(0)
            cache = decoder.SummaryCache(len(model.model.layers))
            model.model.text_step(torch.randn(batch, 5, 96), cache)
            hidden = model.model.windows_step(torch.randn(batch, 136, 96), cache, steps)
            after = model.model.text_step(torch.randn(batch, 3, 96), cache)
            caches.append((cache, hidden, after))
    decoder._query_blocks.cache_clear()
    for (plain, *states), (kernel, *found) in zip(caches[:2], caches[2:]):
        assert kernel.get_query_offset() == plain.get_query_offset() == 5 + 12 + 10 + 3
        for expected, state in zip(states, found):
            torch.testing.assert_close(state, expected, atol=1e-5, rtol=1e-4)
        for one, other in zip(plain.layers, kernel.layers):
            torch.testing.assert_close(other.keys, one.keys, atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(other.values, one.values, atol=1e-5, rtol=1e-4)


@torch.inference_mode()
def test_a_fork_of_a_memory_is_not_written_into(tiny, monkeypatch):
    """Beacons go after what is stored; a fork that already wrote there keeps its own."""
    _, model, _ = tiny
    for module in (attention, decoder):
        monkeypatch.setattr(module, "can_run", lambda *_, **__: True)
    decoder._query_blocks.cache_clear()
    cache = decoder.SummaryCache(len(model.model.layers))
    model.model.text_step(torch.randn(1, 5, 96), cache)
    fork = cache.fork()
    model.model.text_step(torch.randn(1, 7, 96), fork)
    before = [layer.keys.clone() for layer in fork.layers]
    model.model.windows_step(torch.randn(1, 96, 96), cache, [Window(0, 96, 8, 0)])
    decoder._query_blocks.cache_clear()
    assert all(torch.equal(layer.keys, kept) for layer, kept in zip(fork.layers, before))
