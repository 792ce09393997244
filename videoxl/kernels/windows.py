"""Windows through one layer's attention in two kernels: RoPE with all writes to memory, then attention.

A window sees what is stored before it and, causally, its own positions. Beacons of all windows that go through a layer
together are put into the cache first, where they stay: a window reads the cache only up to its own beginning, so it
does not matter that later beacons are there already. Visual tokens' keys and values live in scratch memory, in the
order of the sequence; queries stay in the order of the hidden states ("grouped"), and so does the output.

Shape letters: B batch, T positions of all windows, b beacons among them, N query heads, G key/value heads, D head
dimension, M positions stored before.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_QUERIES, _BLOCK_KEYS, _WARPS, _STAGES = 128, 64, 8, 3  # measured on an H100; 128 keys a block is as fast
_LOG2_E = 1.4426950408889634


def query_blocks(parts: Sequence[tuple[int, int]]) -> Tensor:
    """Blocks of queries of windows that lie one behind the other.

    Args:
        parts: positions of each window, and how many of them are beacons.

    Returns:
        [blocks, 4] int32: place of the block's first query, first place and end of its window, and beacons that earlier
        windows leave. Those with most keys come first.
    """
    rows, start, left = [], 0, 0
    for length, beacons in parts:
        rows += [(first, start, start + length, left) for first in range(start, start + length, BLOCK_QUERIES)]
        start, left = start + length, left + beacons
    return torch.from_numpy(np.array(rows[::-1], dtype=np.int32))


@triton.jit
def _rotated(first, second, cos, sin, dtype):
    """Both halves of rotated heads; `sin` is that of the second half, where it has its own sign."""
    return (first * cos - second * sin).to(dtype), (second * cos + first * sin).to(dtype)


@triton.jit
def _rotate_kernel(
    Q, K, V, COS, SIN, MEMORY_COS, MEMORY_SIN, PLACES, OWN_K, OWN_V, CACHE_K, CACHE_V,
    q_batch, q_row, k_batch, k_row, own_batch, own_head, cache_batch, cache_head, tokens, stored,
    N: tl.constexpr, N2: tl.constexpr, G: tl.constexpr, G2: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """One row of the hidden states. Tables are [T, D], their halves equal but for the sine's sign."""
    row = tl.program_id(0)
    batch = tl.program_id(1).to(tl.int64)
    half = tl.arange(0, D // 2)
    cos = tl.load(COS + row * D + half).to(tl.float32)[None, :]
    sin = tl.load(SIN + row * D + D // 2 + half).to(tl.float32)[None, :]
    dtype = Q.dtype.element_ty

    heads = tl.arange(0, N2)[:, None]
    at = Q + batch * q_batch + row.to(tl.int64) * q_row + heads * D + half[None, :]
    first = tl.load(at, heads < N, other=0.0).to(tl.float32)
    second = tl.load(at + D // 2, heads < N, other=0.0).to(tl.float32)
    first, second = _rotated(first, second, cos, sin, dtype)
    tl.store(at, first, heads < N)
    tl.store(at + D // 2, second, heads < N)

    heads = tl.arange(0, G2)[:, None]
    from_row = batch * k_batch + row.to(tl.int64) * k_row + heads * D + half[None, :]
    first = tl.load(K + from_row, heads < G, other=0.0).to(tl.float32)
    second = tl.load(K + from_row + D // 2, heads < G, other=0.0).to(tl.float32)
    value = tl.load(V + from_row, heads < G, other=0.0)
    value_second = tl.load(V + from_row + D // 2, heads < G, other=0.0)
    turned, turned_second = _rotated(first, second, cos, sin, dtype)
    to = batch * own_batch + heads * own_head + tl.load(PLACES + row) * D + half[None, :]
    tl.store(OWN_K + to, turned, heads < G)
    tl.store(OWN_K + to + D // 2, turned_second, heads < G)
    tl.store(OWN_V + to, value, heads < G)
    tl.store(OWN_V + to + D // 2, value_second, heads < G)
    if row >= tokens:
        beacon = row - tokens
        cos = tl.load(MEMORY_COS + beacon * D + half).to(tl.float32)[None, :]
        sin = tl.load(MEMORY_SIN + beacon * D + D // 2 + half).to(tl.float32)[None, :]
        turned, turned_second = _rotated(first, second, cos, sin, dtype)
        to = batch * cache_batch + heads.to(tl.int64) * cache_head + (stored + beacon).to(tl.int64) * D + half[None, :]
        tl.store(CACHE_K + to, turned, heads < G)
        tl.store(CACHE_K + to + D // 2, turned_second, heads < G)
        tl.store(CACHE_V + to, value, heads < G)
        tl.store(CACHE_V + to + D // 2, value_second, heads < G)


@triton.jit
def _more(total, top, output, query, keys, values, places, limit, stop, scale, MASKED: tl.constexpr):
    """Online softmax over one more block of keys; `limit` [queries] is the last that each may see, `stop` their end."""
    if MASKED:
        key = tl.load(keys, places[:, None] < stop, other=0.0)
        value = tl.load(values, places[:, None] < stop, other=0.0)
    else:
        key = tl.load(keys)
        value = tl.load(values)
    scores = tl.dot(query, tl.trans(key))
    if MASKED:
        scores = tl.where(places[None, :] <= limit[:, None], scores, float("-inf"))
    new_top = tl.maximum(top, tl.max(scores, 1) * scale)
    weights = tl.exp2(scores * scale - new_top[:, None])
    shrink = tl.exp2(top - new_top)
    total = total * shrink + tl.sum(weights, 1)
    output = tl.dot(weights.to(value.dtype), value, output * shrink[:, None])
    return total, new_top, output


@triton.jit(do_not_specialize=["stored"])
def _attend_kernel(
    Q, OUT, CACHE_K, CACHE_V, OWN_K, OWN_V, ORDER, BLOCKS,
    q_batch, q_row, out_batch, out_row, cache_batch, cache_head, own_batch, own_head, stored, scale,
    N: tl.constexpr, GROUP: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, D: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """A block of queries of one head. Heads are innermost, so that those of a group read the same keys at a time."""
    head = tl.program_id(0) % N
    block = BLOCKS + (tl.program_id(0) // N) * 4
    batch = tl.program_id(1).to(tl.int64)
    group = (head // GROUP).to(tl.int64)
    first, start, end, left = tl.load(block), tl.load(block + 1), tl.load(block + 2), tl.load(block + 3)
    seen = stored + left
    d = tl.arange(0, D)
    own = first + tl.arange(0, QUERIES)
    rows = tl.load(ORDER + own, own < end, other=0).to(tl.int64)
    query = tl.load(Q + batch * q_batch + rows[:, None] * q_row + head * D + d[None, :], own[:, None] < end, other=0.0)
    total = tl.zeros([QUERIES], tl.float32)
    top = tl.full([QUERIES], float("-inf"), tl.float32)
    output = tl.zeros([QUERIES, D], tl.float32)

    places = tl.arange(0, KEYS)
    tile = places[:, None] * D + d[None, :]
    keys = CACHE_K + batch * cache_batch + group * cache_head + tile
    values = CACHE_V + batch * cache_batch + group * cache_head + tile
    whole = seen // KEYS * KEYS
    for _ in tl.range(0, whole, KEYS, num_stages=STAGES):
        total, top, output = _more(total, top, output, query, keys, values, places, own, 0, scale, False)
        keys += KEYS * D
        values += KEYS * D
    if whole < seen:
        limit = tl.full([QUERIES], 0, tl.int32) + seen - 1
        total, top, output = _more(total, top, output, query, keys, values, whole + places, limit, seen, scale, True)

    keys = OWN_K + batch * own_batch + group * own_head + start.to(tl.int64) * D + tile
    values = OWN_V + batch * own_batch + group * own_head + start.to(tl.int64) * D + tile
    plain = (first - start) // KEYS * KEYS + start  # keys before it are seen by all queries of the block
    for _ in tl.range(start, plain, KEYS, num_stages=STAGES):
        total, top, output = _more(total, top, output, query, keys, values, places, own, 0, scale, False)
        keys += KEYS * D
        values += KEYS * D
    for at in range(plain, tl.minimum(first + QUERIES, end), KEYS):
        total, top, output = _more(total, top, output, query, keys, values, at + places, own, end, scale, True)
        keys += KEYS * D
        values += KEYS * D
    output = output / total[:, None]
    to = OUT + batch * out_batch + rows[:, None] * out_row + head * D + d[None, :]
    tl.store(to, output.to(query.dtype), own[:, None] < end)


def window_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rope: tuple[Tensor, Tensor],
    memory_rope: tuple[Tensor, Tensor],
    order: Tensor,
    places: Tensor,
    blocks: Tensor,
    cache: tuple[Tensor, Tensor],
    stored: int,
    scaling: float,
) -> Tensor:
    """Attention of windows to the cache and to themselves; their beacons are left in the cache.

    Args:
        query: [B, T, N D], grouped, not rotated yet; it is rotated in place. key, value: [B, T, G D].
        rope: cosine and signed sine [1, T, D] of the rows. memory_rope: [1, b, D], of beacons in the cache.
        order, places: [T] int64, as in `WindowLayout`. blocks: `query_blocks` of the windows, on the device.
        cache: keys and values [B, G, capacity, D], contiguous but for the batch; capacity >= stored + b.
        stored: M.

    Returns:
        [B, T, N D], grouped.
    """
    batch, rows = query.shape[:2]
    dim = rope[0].shape[-1]
    heads, groups = query.shape[2] // dim, key.shape[2] // dim
    own = [query.new_empty(batch, groups, rows, dim) for _ in range(2)]
    tables = [table.to(query.dtype).contiguous() for table in (*rope, *memory_rope)]
    _rotate_kernel[(rows, batch)](
        query, key, value, *tables, places, *own, *cache,
        query.stride(0), query.stride(1), key.stride(0), key.stride(1), *own[0].stride()[:2], *cache[0].stride()[:2],
        rows - memory_rope[0].shape[1], stored,
        heads, triton.next_power_of_2(heads), groups, triton.next_power_of_2(groups), dim,
    )  # fmt: skip
    output = torch.empty_like(query)
    _attend_kernel[(heads * len(blocks), batch)](
        query, output, *cache, *own, order, blocks,
        query.stride(0), query.stride(1), output.stride(0), output.stride(1), *cache[0].stride()[:2],
        *own[0].stride()[:2], stored, scaling * _LOG2_E,
        heads, heads // groups, BLOCK_QUERIES, _BLOCK_KEYS, dim, _STAGES, num_warps=_WARPS, num_stages=_STAGES,
    )  # fmt: skip
    return output
