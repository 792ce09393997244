"""Windows through one layer's attention in two kernels: RoPE with all writes to memory, then attention.

A window sees what is stored before it and, causally, its own positions. Beacons of all windows that go through a layer
together are put into the cache first, where they stay: a window reads the cache only up to its own beginning, so it
does not matter that later beacons are there already. Visual tokens' keys and values live in scratch memory, in the
order of the sequence; queries stay in the order of the hidden states ("grouped"), and so does the output.

Shape letters: B batch, T positions of all windows, b beacons among them, N query heads, G key/value heads, D head
dimension, M positions stored before.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from videoxl.kernels import last_line

BLOCK_QUERIES, _WARPS = 128, 8
LOG2_E = 1.4426950408889634
STORED_FROM = 2048  # cached positions from which a faster kernel attends to them first: see `_begin`


def query_blocks(parts: Sequence[tuple[int, int]]) -> Tensor:
    """Blocks of queries for consecutive windows.

    Args:
        parts: positions of each window, and how many of them are beacons.

    Returns:
        [blocks, 4] int32: position of the block's first query, start and end of its window, and beacons that earlier
        windows leave. Blocks with the most keys come first.
    """
    rows, start, left = [], 0, 0
    for length, beacons in parts:
        rows += [(first, start, start + length, left) for first in range(start, start + length, BLOCK_QUERIES)]
        start, left = start + length, left + beacons
    return torch.from_numpy(np.array(rows[::-1], dtype=np.int32))


@triton.jit
def rotated(first, second, cos, sin, dtype):
    """Both halves of rotated heads; `sin` is the table's second half, whose sign is unchanged."""
    return (first * cos - second * sin).to(dtype), (second * cos + first * sin).to(dtype)


@triton.jit
def load_halves(at, real, HALF: tl.constexpr):
    """Both halves, float32, of the heads whose first halves are at `at`."""
    first = tl.load(at, real, other=0.0).to(tl.float32)
    return first, tl.load(at + HALF, real, other=0.0).to(tl.float32)


@triton.jit
def store_halves(at, real, first, second, HALF: tl.constexpr):
    tl.store(at, first, real)
    tl.store(at + HALF, second, real)


@triton.jit
def rotate_in_place(at, real, cos, sin, dtype, HALF: tl.constexpr):
    """RoPE on the heads whose first halves are at `at`."""
    first, second = load_halves(at, real, HALF)
    first, second = rotated(first, second, cos, sin, dtype)
    store_halves(at, real, first, second, HALF)


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
    rotate_in_place(at, heads < N, cos, sin, dtype, D // 2)

    heads = tl.arange(0, G2)[:, None]
    from_row = batch * k_batch + row.to(tl.int64) * k_row + heads * D + half[None, :]
    first, second = load_halves(K + from_row, heads < G, D // 2)
    value, value_second = load_halves(V + from_row, heads < G, D // 2)
    turned, turned_second = rotated(first, second, cos, sin, dtype)
    to = batch * own_batch + heads * own_head + tl.load(PLACES + row) * D + half[None, :]
    store_halves(OWN_K + to, heads < G, turned, turned_second, D // 2)
    store_halves(OWN_V + to, heads < G, value.to(dtype), value_second.to(dtype), D // 2)
    if row >= tokens:
        beacon = row - tokens
        cos = tl.load(MEMORY_COS + beacon * D + half).to(tl.float32)[None, :]
        sin = tl.load(MEMORY_SIN + beacon * D + D // 2 + half).to(tl.float32)[None, :]
        turned, turned_second = rotated(first, second, cos, sin, dtype)
        to = batch * cache_batch + heads.to(tl.int64) * cache_head + (stored + beacon).to(tl.int64) * D + half[None, :]
        store_halves(CACHE_K + to, heads < G, turned, turned_second, D // 2)
        store_halves(CACHE_V + to, heads < G, value.to(dtype), value_second.to(dtype), D // 2)


@triton.jit
def _more(total, top, output, query, keys, values, at, positions, limit, scale, MASKED: tl.constexpr):
    """Online softmax over the block of keys at `at`. `limit` [queries]: the last of `positions` that each may see."""
    scores = tl.dot(query, tl.trans(keys.load([at, 0])))
    if MASKED:
        scores = tl.where(positions[None, :] <= limit[:, None], scores, float("-inf"))
    new_top = tl.maximum(top, tl.max(scores, 1) * scale)
    weights = tl.exp2(scores * scale - new_top[:, None])
    shrink = tl.exp2(top - new_top)
    total = total * shrink + tl.sum(weights, 1)
    value = values.load([at, 0])
    return total, new_top, tl.dot(weights.to(value.dtype), value, output * shrink[:, None])


@triton.jit
def _rows(keys, values, offset, length, KEYS: tl.constexpr, D: tl.constexpr):
    """Descriptors of [length, D] keys and values at `offset`, read KEYS rows at a time."""
    return (
        tl.make_tensor_descriptor(keys + offset, shape=[length, D], strides=[D, 1], block_shape=[KEYS, D]),
        tl.make_tensor_descriptor(values + offset, shape=[length, D], strides=[D, 1], block_shape=[KEYS, D]),
    )


@triton.jit(do_not_specialize=["stored", "begun", "sum_batch", "sum_head"])
def _attend_kernel(
    Q, OUT, SUM, CACHE_K, CACHE_V, OWN_K, OWN_V, PERMUTATION, BLOCKS,
    q_batch, q_row, out_batch, out_row, sum_batch, sum_head, cache_batch, cache_head, own_batch, own_head,
    stored, begun, scale,
    N: tl.constexpr, GROUP: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, D: tl.constexpr,
    STAGES: tl.constexpr, BEGUN: tl.constexpr,
):  # fmt: skip
    """A block of queries of one head. Heads are innermost, so that those of a group read the same keys together."""
    head = tl.program_id(0) % N
    block = BLOCKS + (tl.program_id(0) // N) * 4
    batch = tl.program_id(1).to(tl.int64)
    group = (head // GROUP).to(tl.int64)
    first, start, end, left = tl.load(block), tl.load(block + 1), tl.load(block + 2), tl.load(block + 3)
    seen = stored + left
    d = tl.arange(0, D)
    own = first + tl.arange(0, QUERIES)
    rows = tl.load(PERMUTATION + own, own < end, other=0).to(tl.int64)
    query = tl.load(Q + batch * q_batch + rows[:, None] * q_row + head * D + d[None, :], own[:, None] < end, other=0.0)
    to = OUT + batch * out_batch + rows[:, None] * out_row + head * D + d[None, :]
    if BEGUN:  # OUT and SUM already hold attention to the first `begun` positions, and the base-2 logarithm of its sum
        output = tl.load(to, own[:, None] < end, other=0.0).to(tl.float32)
        top = tl.load(SUM + batch * sum_batch + head * sum_head + rows, own < end, other=0.0)
        total = tl.full([QUERIES], 1.0, tl.float32)
    else:
        output = tl.zeros([QUERIES, D], tl.float32)
        top = tl.full([QUERIES], float("-inf"), tl.float32)
        total = tl.zeros([QUERIES], tl.float32)

    positions = tl.arange(0, KEYS)
    # Loads through descriptors return zeros past the end.
    keys, values = _rows(CACHE_K, CACHE_V, batch * cache_batch + group * cache_head, seen, KEYS, D)
    whole = seen // KEYS * KEYS
    for at in tl.range(begun, whole, KEYS, num_stages=STAGES):
        total, top, output = _more(total, top, output, query, keys, values, at, positions, own, scale, False)
    if whole < seen:
        limit = tl.full([QUERIES], 0, tl.int32) + seen - 1
        total, top, output = _more(
            total, top, output, query, keys, values, whole, whole + positions, limit, scale, True
        )

    offset = batch * own_batch + group * own_head + start.to(tl.int64) * D
    keys, values = _rows(OWN_K, OWN_V, offset, end - start, KEYS, D)
    plain = (first - start) // KEYS * KEYS  # keys before it are seen by all queries of the block
    for at in tl.range(0, plain, KEYS, num_stages=STAGES):
        total, top, output = _more(total, top, output, query, keys, values, at, positions, own, scale, False)
    for at in range(plain, tl.minimum(first + QUERIES, end) - start, KEYS):
        total, top, output = _more(
            total, top, output, query, keys, values, at, start + at + positions, own, scale, True
        )
    output = output / total[:, None]
    tl.store(to, output.to(query.dtype), own[:, None] < end)


def window_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rope: tuple[Tensor, Tensor],
    memory_rope: tuple[Tensor, Tensor],
    permutation: Tensor,
    positions: Tensor,
    blocks: Tensor,
    cache: tuple[Tensor, Tensor],
    stored: int,
    scaling: float,
) -> Tensor:
    """Attention of windows to the cache and to themselves; writes their beacons into the cache.

    Args:
        query: [B, T, N D], grouped, not rotated yet; it is rotated in place. key, value: [B, T, G D].
        rope: cosine and signed sine [1, T, D] of the rows. memory_rope: [1, b, D], of beacons in the cache.
        permutation, positions: [T] int64, as in `WindowLayout`. blocks: `query_blocks` of the windows, on the device.
        cache: keys and values [B, G, capacity, D], contiguous but for the batch; capacity >= stored + b.
        stored: M, cached positions before these windows.

    Returns:
        [B, T, N D], grouped.
    """
    batch, rows = query.shape[:2]
    dim = rope[0].shape[-1]
    heads, groups = query.shape[2] // dim, key.shape[2] // dim
    own = [query.new_empty(batch, groups, rows, dim) for _ in range(2)]
    tables = [table.to(query.dtype).contiguous() for table in (*rope, *memory_rope)]
    _rotate_kernel[(rows, batch)](
        query, key, value, *tables, positions, *own, *cache,
        query.stride(0), query.stride(1), key.stride(0), key.stride(1), *own[0].stride()[:2], *cache[0].stride()[:2],
        rows - memory_rope[0].shape[1], stored,
        heads, triton.next_power_of_2(heads), groups, triton.next_power_of_2(groups), dim,
    )  # fmt: skip
    begun, output, sums = _begin(query, cache, stored, scaling * LOG2_E)
    keys, stages = block_keys(query.device)
    triton.set_allocator(_room_for_descriptors)
    _attend_kernel[(heads * len(blocks), batch)](
        query, output, sums, *cache, *own, permutation, blocks,
        query.stride(0), query.stride(1), output.stride(0), output.stride(1), *sums.stride()[:2],
        *cache[0].stride()[:2], *own[0].stride()[:2], stored, begun, scaling * LOG2_E,
        heads, heads // groups, BLOCK_QUERIES, keys, dim, stages, begun > 0, num_warps=_WARPS, num_stages=stages,
    )  # fmt: skip
    return output


def _begin(query: Tensor, cache: tuple[Tensor, Tensor], stored: int, scale: float) -> tuple[int, Tensor, Tensor]:
    """Attention of all windows to the first stored positions, if there is a faster kernel for this GPU.

    Returns:
        The number of these positions, the output [B, T, N D], and the base-2 logarithm of its sum, float32 [B, N, T].
        With 0 positions the output is uninitialised and the sum empty.
    """
    if stored >= STORED_FROM and query.is_contiguous() and all(kind.is_contiguous() for kind in cache):
        fast = _fast_for(query.device, query.dtype, cache[0].shape[-1])
        if fast is not None:
            step = math.lcm(fast.KEYS, block_keys(query.device)[0])  # the next kernel takes whole blocks as well
            begun = stored // step * step
            return begun, *fast.attend_stored(query, cache, begun, scale)
    return 0, torch.empty_like(query), query.new_empty(0, 0, 0, dtype=torch.float32)


@lru_cache
def _fast_for(device: torch.device, dtype: torch.dtype, dim: int):
    """The module with such a kernel, checked once; else None, with a warning if it should have worked."""
    if device.type != "cuda" or torch.version.hip or torch.cuda.get_device_capability(device)[0] != 9:
        return None
    try:
        from videoxl.kernels import hopper

        if dim not in hopper.HEAD_DIMS:
            return None
        hopper.check(device, dtype, dim)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # of the compiler, or of an interface that moved
        warnings.warn(
            f"the attention kernel for Hopper does not run with Triton {triton.__version__} ({last_line(error)}); long "
            "videos are read more slowly",
            stacklevel=2,
        )
        return None
    return hopper


@lru_cache
def block_keys(device: torch.device) -> tuple[int, int]:
    """Keys per block and stages of the loop over them: as many as shared memory holds.

    On an H100 128 keys in three stages reach 463 TFLOP/s in windows at 20,000 positions (64 keys: 445; in two stages:
    330), and 2.1 TB/s in decoding at 36,864 (64 keys: 1.7 to 2.0). The 99 KB of Ada hold half.
    """
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else (9, 0)
    if capability[0] in (9, 10):
        return 128, 3
    return 64, 3 if capability == (8, 0) else 2


def _room_for_descriptors(size: int, alignment: int, stream: int | None) -> Tensor:
    return torch.empty(size, dtype=torch.int8, device="cuda" if torch.cuda.is_available() else "cpu")
