"""Attention to stored keys that every query sees, on Hopper, where a kernel must schedule its own overlap.

Two groups of four warps have 64 queries each, and a separate warp loads keys and values for both (TMA), so that one
group's softmax runs during the other's products. Within a group, the product with the values of one block also starts
before the softmax of the next (FlashAttention-3, https://arxiv.org/abs/2407.08608, section 3); of that softmax, the
assembler overlaps only the maximum with the product and runs most exponentials after it. Triton's own scheduling lacks
this order and reaches three quarters of the speed; cuDNN is faster by a tenth but takes a second to plan at its first
call. Written in Gluon, whose interface changes with Triton's versions: where it does not run, `windows.py` does not use
it.

Shape letters: B batch, T queries, N query heads, G key/value heads, D head dimension.
"""

from __future__ import annotations

import math

import torch
import triton
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

HEAD_DIMS = (64, 128)
KEYS = 128
"""Keys per block; the number of keys must be a multiple of it."""
QUERIES = 64  # of a group of warps
_STAGES = 2
_REGISTERS = 168  # per thread on average: 64 Ki for three groups of four warps
_load = getattr(tma, "async_load", None) or tma.async_copy_global_to_shared  # the name until Triton 3.8


@gluon.jit
def _fetch(desc, row, column, ready, buffer):
    mbarrier.expect(ready, desc.block_type.nbytes)
    _load(desc, [row, column], ready, buffer)


@gluon.jit
def _fetch_all(
    descs, buffers, ready, free, place, blocks,
    QUERIES: gl.constexpr, KEYS: gl.constexpr, D: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """The loading warp: queries of both groups, then keys and values as soon as both are done with a buffer."""
    query_row, key_row, head = place
    for part in gl.static_range(2):
        _fetch(descs[0], query_row + part * QUERIES, head * D, ready[0].index(part), buffers[0].index(part))
    for block in range(blocks):
        stage = block % STAGES
        phase = block // STAGES & 1 ^ 1
        for kind in gl.static_range(2):
            mbarrier.wait(free[kind].index(stage), phase)
            _fetch(
                descs[1 + kind], key_row + block * KEYS, 0, ready[1 + kind].index(stage), buffers[1 + kind].index(stage)
            )


@gluon.jit
def _soften(scores, top, total, scale):
    """Online softmax: a block's weights, and the factor that scales down all earlier ones. In base 2."""
    new_top = gl.maximum(top, gl.max(scores, 1) * scale)
    weights = gl.exp2(scores * scale - gl.expand_dims(new_top, 1))
    shrink = gl.exp2(top - new_top)
    return weights, new_top, total * shrink + gl.sum(weights, 1), shrink


@gluon.jit
def _attend(
    part: gl.constexpr, buffers, ready, free, OUT, SUM, out_row, rows, first, blocks, scale,
    QUERIES: gl.constexpr, KEYS: gl.constexpr, D: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """A group of warps. OUT and SUM: those of its batch and head, `rows` rows; `first`: first row of both groups."""
    dtype: gl.constexpr = buffers[1].dtype
    SCORES: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, KEYS, 16])
    RESULT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D, 16])
    WEIGHTS: gl.constexpr = gl.DotOperandLayout(0, RESULT, 2)
    OF_SCORES: gl.constexpr = gl.SliceLayout(1, SCORES)
    OF_RESULT: gl.constexpr = gl.SliceLayout(1, RESULT)
    query, keys, values = buffers[0].index(part), buffers[1], buffers[2]
    none = gl.zeros([QUERIES, KEYS], gl.float32, SCORES)
    output = gl.zeros([QUERIES, D], gl.float32, RESULT)
    top = gl.full([QUERIES], float("-inf"), gl.float32, OF_SCORES)
    total = gl.zeros([QUERIES], gl.float32, OF_SCORES)

    mbarrier.wait(ready[0].index(part), 0)
    mbarrier.wait(ready[1].index(0), 0)
    begun = warpgroup_mma(query, keys.index(0).permute((1, 0)), none, use_acc=False, is_async=True)
    scores = warpgroup_mma_wait(0, deps=(begun,))
    mbarrier.arrive(free[0].index(0), count=1)
    weights, top, total, shrink = _soften(scores, top, total, scale)
    held = gl.convert_layout(weights.to(dtype), WEIGHTS)
    for block in range(blocks - 1):
        after, now = (block + 1) % STAGES, block % STAGES
        mbarrier.wait(ready[1].index(after), (block + 1) // STAGES & 1)
        begun = warpgroup_mma(query, keys.index(after).permute((1, 0)), none, use_acc=False, is_async=True)
        mbarrier.wait(ready[2].index(now), block // STAGES & 1)
        product = warpgroup_mma(held, values.index(now), output, is_async=True)
        scores = warpgroup_mma_wait(1, deps=(begun,))
        mbarrier.arrive(free[0].index(after), count=1)
        weights, top, total, shrink = _soften(scores, top, total, scale)
        output = warpgroup_mma_wait(0, deps=(product,))
        mbarrier.arrive(free[1].index(now), count=1)
        output = output * gl.expand_dims(gl.convert_layout(shrink, OF_RESULT), 1)
        held = gl.convert_layout(weights.to(dtype), WEIGHTS)
    last = blocks - 1
    mbarrier.wait(ready[2].index(last % STAGES), last // STAGES & 1)
    product = warpgroup_mma(held, values.index(last % STAGES), output, is_async=True)
    output = warpgroup_mma_wait(0, deps=(product,))

    output = output / gl.expand_dims(gl.convert_layout(total, OF_RESULT), 1)
    row = first + part * QUERIES + gl.arange(0, QUERIES, layout=OF_RESULT)
    d = gl.arange(0, D, layout=gl.SliceLayout(0, RESULT))
    to = OUT + gl.expand_dims(row.to(gl.int64) * out_row, 1) + gl.expand_dims(d, 0)
    gl.store(to, output.to(dtype), mask=gl.expand_dims(row < rows, 1))
    row = first + part * QUERIES + gl.arange(0, QUERIES, layout=OF_SCORES)
    gl.store(SUM + row, top + gl.log2(total), mask=row < rows)


@gluon.jit(do_not_specialize=["rows", "blocks", "capacity", "N", "GROUP"])
def _stored_kernel(
    q_desc, k_desc, v_desc, OUT, SUM, rows, blocks, capacity, N, GROUP, scale,
    QUERIES: gl.constexpr, KEYS: gl.constexpr, D: gl.constexpr, STAGES: gl.constexpr, num_warps: gl.constexpr,
):  # fmt: skip
    """Two blocks of queries of one head. Heads are innermost, so that those of a group read the same keys together."""
    dtype: gl.constexpr = k_desc.dtype
    head = gl.program_id(0) % N
    first = gl.program_id(0) // N * (2 * QUERIES)
    batch = gl.program_id(1)
    key_row = (batch * (N // GROUP) + head // GROUP) * capacity
    query = gl.allocate_shared_memory(dtype, [2, QUERIES, D], q_desc.layout)
    keys = gl.allocate_shared_memory(dtype, [STAGES, KEYS, D], k_desc.layout)
    values = gl.allocate_shared_memory(dtype, [STAGES, KEYS, D], v_desc.layout)
    query_ready = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    keys_ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    values_ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    keys_free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    values_free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(2):
        mbarrier.init(query_ready.index(i), count=1)
    for i in gl.static_range(STAGES):
        mbarrier.init(keys_ready.index(i), count=1)
        mbarrier.init(values_ready.index(i), count=1)
        mbarrier.init(keys_free.index(i), count=2)  # both groups
        mbarrier.init(values_free.index(i), count=2)
    fence_async_shared()
    descs, buffers = (q_desc, k_desc, v_desc), (query, keys, values)
    ready, free = (query_ready, keys_ready, values_ready), (keys_free, values_free)
    place = (batch * rows + first, key_row, head)
    out = OUT + (batch.to(gl.int64) * rows * N + head) * D
    sums = SUM + (batch * N + head).to(gl.int64) * rows
    gl.warp_specialize(
        [
            (
                _attend,
                (0, buffers, ready, free, out, sums, N * D, rows, first, blocks, scale, QUERIES, KEYS, D, STAGES),
            ),
            (
                _attend,
                (1, buffers, ready, free, out, sums, N * D, rows, first, blocks, scale, QUERIES, KEYS, D, STAGES),
            ),
            (_fetch_all, (descs, buffers, ready, free, place, blocks, QUERIES, KEYS, D, STAGES)),
        ],
        [4, 1],
        [232, 40],  # registers per thread; the first group gets the rest of three times `_REGISTERS`
    )


def attend_stored(query: Tensor, cache: tuple[Tensor, Tensor], stored: int, scale: float) -> tuple[Tensor, Tensor]:
    """Attention of all queries to the first keys of a cache.

    Args:
        query: [B, T, N D] bf16 or fp16, contiguous. cache: keys and values [B, G, capacity, D], contiguous.
        stored: keys that are seen, a multiple of `KEYS`, at least one block.
        scale: of the scores, for a softmax in base 2.

    Returns:
        [B, T, N D], and the base-2 logarithm of the sum of exponentials, float32 [B, N, T].
    """
    batch, rows = query.shape[:2]
    groups, capacity, dim = cache[0].shape[1:]
    heads = query.shape[2] // dim
    output, sums = torch.empty_like(query), query.new_empty(batch, heads, rows, dtype=torch.float32)
    _stored_kernel[(heads * triton.cdiv(rows, 2 * QUERIES), batch)](
        _described(query.view(-1, heads * dim), QUERIES, dim), *(_described(x.view(-1, dim), KEYS, dim) for x in cache),
        output, sums, rows, stored // KEYS, capacity, heads, heads // groups, scale,
        QUERIES, KEYS, dim, _STAGES, num_warps=4, maxnreg=_REGISTERS,
    )  # fmt: skip
    return output, sums


def _described(rows: Tensor, number: int, dim: int) -> TensorDescriptor:
    """Blocks of `number` rows and `dim` columns of a matrix."""
    dtype = gl.bfloat16 if rows.dtype == torch.bfloat16 else gl.float16
    layout = gl.NVMMASharedLayout.get_default_for([number, dim], dtype)
    return TensorDescriptor(rows, list(rows.shape), list(rows.stride()), [number, dim], layout)


def check(device: torch.device, dtype: torch.dtype, dim: int) -> None:
    """Compare with plain attention on a few blocks. Raises the compiler's errors, or `RuntimeError` if they differ."""
    generator = torch.Generator().manual_seed(0)
    shape, heads = (1, 1, 3 * KEYS, dim), 2
    query, *cache = (
        torch.randn(size, generator=generator).to(device, dtype) for size in ((1, 70, heads * dim), shape, shape)
    )
    found, _ = attend_stored(query, (cache[0], cache[1]), 3 * KEYS, 0.1)
    key, value = (kind[0, 0].float() for kind in cache)
    scores = query.float().view(-1, heads, dim).transpose(0, 1) @ key.T * (0.1 * math.log(2))
    expected = (scores.softmax(-1) @ value).transpose(0, 1).reshape(found.shape)
    error = (found.float() - expected).abs().max().item()
    if not error < 0.02:
        raise RuntimeError(f"it is {error:.2g} off plain attention")
