"""One new token per row through one layer's attention, in three kernels that a captured graph can hold.

The addresses and lengths of keys and values change between tokens and sequences. They are read from device memory,
not passed as arguments, so that a graph of these kernels serves every sequence of a model.

Attention to a long cache is split over the keys, so that all processors have work, and the queries of all heads of a
group (and of all rows, where they share a prefix) go over the keys at once, so that each key is read once.

Shape letters: B rows, N query heads, G key/value heads, D head dimension.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from videoxl.kernels.windows import LOG2_E, block_keys, load_halves, rotate_in_place, rotated, store_halves

_MOST_QUERIES = 64  # that go over the keys at once: more do not fit into shared memory

ADDRESSES = 6
"""Entries per layer: keys, values and capacity of the rows' own storage, then of the shared prefix (0 without one)."""

OWN, PREFIX = 0, 3


@triton.jit
def _storage(ADDRESS, dtype: tl.constexpr):
    """Load keys, values and capacity (in positions) from `ADDRESS`."""
    keys = tl.load(ADDRESS).to(tl.pointer_type(dtype))
    values = tl.load(ADDRESS + 1).to(tl.pointer_type(dtype))
    return tl.multiple_of(keys, 16), tl.multiple_of(values, 16), tl.load(ADDRESS + 2)


@triton.jit
def _write_kernel(
    QKV, COS, SIN, ADDRESS, LENGTHS,
    N: tl.constexpr, N2: tl.constexpr, G: tl.constexpr, G2: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """One row: its query is rotated in place, its key and value are written after the stored positions."""
    row = tl.program_id(0)
    dtype = QKV.dtype.element_ty
    own_keys, own_values, capacity = _storage(ADDRESS, dtype)
    stored = tl.load(LENGTHS)
    half = tl.arange(0, D // 2)
    cos = tl.load(COS + row * D + half).to(tl.float32)[None, :]
    sin = tl.load(SIN + row * D + D // 2 + half).to(tl.float32)[None, :]

    heads = tl.arange(0, N2)[:, None]
    row_start = QKV + row * (N + 2 * G) * D
    rotate_in_place(row_start + heads * D + half[None, :], heads < N, cos, sin, dtype, D // 2)

    heads = tl.arange(0, G2)[:, None]
    at = row_start + (N + heads) * D + half[None, :]
    first, second = load_halves(at, heads < G, D // 2)
    first, second = rotated(first, second, cos, sin, dtype)
    to = ((row * G + heads) * capacity + stored) * D + half[None, :]
    store_halves(own_keys + to, heads < G, first, second, D // 2)
    first, second = load_halves(at + G * D, heads < G, D // 2)
    store_halves(own_values + to, heads < G, first.to(dtype), second.to(dtype), D // 2)


@triton.jit
def _split_kernel(
    QKV, ADDRESS, LENGTHS, PART, WEIGHT, scale, rows, more,
    N: tl.constexpr, G: tl.constexpr, SPLITS: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
    D: tl.constexpr, SHARED: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Attention of one group of heads to one split of the keys: for one row, or for many rows that share the keys.

    Writes its share of PART [programs, QUERIES, D] and WEIGHT [programs, QUERIES, 2]. `more`: positions beyond those in
    LENGTHS.
    """
    GROUP: tl.constexpr = N // G
    split, group, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    keys, values, capacity = _storage(ADDRESS, QKV.dtype.element_ty)
    length = tl.load(LENGTHS) + more
    share = tl.cdiv(tl.cdiv(length, SPLITS), KEYS) * KEYS
    start = split * share
    stop = tl.minimum(start + share, length)
    index, d = tl.arange(0, QUERIES), tl.arange(0, D)
    if SHARED:
        row = part * (QUERIES // GROUP) + index // GROUP
        real = (index < QUERIES // GROUP * GROUP) & (row < rows)
        offset = group.to(tl.int64) * capacity * D
    else:
        row = part + index * 0
        real = index < GROUP
        offset = (part * G + group).to(tl.int64) * capacity * D
    head = group * GROUP + index % GROUP
    query = tl.load(QKV + (row * (N + 2 * G) + head)[:, None] * D + d[None, :], real[:, None], other=0.0)
    keys += offset
    values += offset
    total = tl.zeros([QUERIES], tl.float32)
    top = tl.full([QUERIES], float("-inf"), tl.float32)
    output = tl.zeros([QUERIES, D], tl.float32)
    for at in tl.range(start, stop, KEYS, num_stages=STAGES):
        positions = at + tl.arange(0, KEYS)
        tile = positions.to(tl.int64)[:, None] * D + d[None, :]
        key = tl.load(keys + tile, positions[:, None] < stop, other=0.0)
        value = tl.load(values + tile, positions[:, None] < stop, other=0.0)
        scores = tl.where(positions[None, :] < stop, tl.dot(query, tl.trans(key)), float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, 1) * scale)
        weights = tl.exp2(scores * scale - new_top[:, None])
        shrink = tl.exp2(top - new_top)
        total = total * shrink + tl.sum(weights, 1)
        output = tl.dot(weights.to(value.dtype), value, output * shrink[:, None])
        top = new_top
    place = ((part * G + group) * SPLITS + split) * QUERIES + index
    tl.store(PART + place.to(tl.int64)[:, None] * D + d[None, :], output)
    tl.store(WEIGHT + place * 2, top)
    tl.store(WEIGHT + place * 2 + 1, total)


@triton.jit
def _add_up(PART, WEIGHT, positions, d, real, top, total, output):
    """Merge the partial softmaxes at `positions` into the running one."""
    tops = tl.load(WEIGHT + positions * 2, real, other=float("-inf"))
    totals = tl.load(WEIGHT + positions * 2 + 1, real, other=0.0)
    parts = tl.load(PART + positions.to(tl.int64)[:, None] * d.shape[0] + d[None, :], real[:, None], other=0.0)
    new_top = tl.maximum(top, tl.max(tops, 0))
    weights = tl.exp2(tops - new_top)
    shrink = tl.exp2(top - new_top)
    output = output * shrink + tl.sum(parts * weights[:, None], 0)
    return new_top, total * shrink + tl.sum(totals * weights, 0), output


@triton.jit
def _merge_kernel(
    OWN_PART, OWN_WEIGHT, PREFIX_PART, PREFIX_WEIGHT, OUT,
    N: tl.constexpr, G: tl.constexpr, OWN_SPLITS: tl.constexpr, OWN_QUERIES: tl.constexpr,
    PREFIX_SPLITS: tl.constexpr, PREFIX_QUERIES: tl.constexpr, MOST: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """Merge the results of `_split_kernel` for one head of one row."""
    GROUP: tl.constexpr = N // G
    head, row = tl.program_id(0), tl.program_id(1)
    group, inner = head // GROUP, head % GROUP
    split, d = tl.arange(0, MOST), tl.arange(0, D)
    positions = ((row * G + group) * OWN_SPLITS + split) * OWN_QUERIES + inner
    top, total = float("-inf"), 0.0
    output = tl.zeros([D], tl.float32)
    top, total, output = _add_up(OWN_PART, OWN_WEIGHT, positions, d, split < OWN_SPLITS, top, total, output)
    if PREFIX_SPLITS > 0:
        ROWS: tl.constexpr = PREFIX_QUERIES // GROUP
        positions = ((row // ROWS * G + group) * PREFIX_SPLITS + split) * PREFIX_QUERIES + row % ROWS * GROUP + inner
        top, total, output = _add_up(
            PREFIX_PART, PREFIX_WEIGHT, positions, d, split < PREFIX_SPLITS, top, total, output
        )
    tl.store(OUT + (row * N + head) * D + d, (output / total).to(OUT.dtype.element_ty))


class DecodeAttention:
    """Buffers and sizes for B rows; one object serves all layers, which run one after the other.

    Args:
        shared: whether the rows share a prefix.
    """

    def __init__(self, batch: int, heads: int, groups: int, dim: int, shared: bool, device: torch.device):
        self.heads, self.groups, self.dim, self.shared, self.rows = heads, groups, dim, shared, batch
        group = heads // groups
        processors = _processors(device)
        self._keys, self._stages = block_keys(device)
        own_queries = max(16, triton.next_power_of_2(group))
        # The text after a shared prefix is short.
        own_splits = 4 if shared else max(1, processors // (groups * batch))
        self._own = _Parts(own_splits, own_queries, batch, groups, dim, device)
        self._prefix = self._own
        if shared:
            queries = max(own_queries, min(triton.next_power_of_2(group * batch), _MOST_QUERIES))
            chunks = triton.cdiv(batch, queries // group)
            self._prefix = _Parts(max(1, processors // (groups * chunks)), queries, chunks, groups, dim, device)

    def __call__(
        self,
        qkv: Tensor,
        rope: tuple[Tensor, Tensor],
        addresses: Tensor,
        lengths: Tensor,
        scaling: float,
    ) -> Tensor:
        """Write one position of every row into the cache and attend to all of them.

        Args:
            qkv: [B, 1, (N + 2 G) D], queries, keys and values, not rotated yet; queries are rotated in place.
            rope: cosine and signed sine [B, 1, D].
            addresses: [ADDRESSES] int64, of the layer's keys and values [B, G, capacity, D].
            lengths: [2] int32, positions stored before this one in the rows' own storage and in the prefix.

        Returns:
            [B, 1, N D].
        """
        heads, groups, dim, scale = self.heads, self.groups, self.dim, scaling * LOG2_E
        _write_kernel[(self.rows,)](
            qkv, *rope, addresses, lengths,
            heads, triton.next_power_of_2(heads), groups, triton.next_power_of_2(groups), dim,
        )  # fmt: skip
        calls = [(self._own, OWN, 0, 1)] + ([(self._prefix, PREFIX, 1, 0)] if self.shared else [])
        for parts, at, which, more in calls:
            _split_kernel[(parts.splits, groups, parts.number)](
                qkv, addresses[at:], lengths[which:], parts.outputs, parts.weights, scale, self.rows, more,
                heads, groups, parts.splits, parts.queries, self._keys, dim, which == 1,
                self._stages, num_warps=4, num_stages=self._stages,
            )  # fmt: skip
        output = qkv.new_empty(self.rows, 1, heads * dim)
        own, prefix = self._own, self._prefix
        _merge_kernel[(heads, self.rows)](
            own.outputs, own.weights, prefix.outputs, prefix.weights, output,
            heads, groups, own.splits, own.queries, prefix.splits if self.shared else 0, prefix.queries,
            triton.next_power_of_2(max(own.splits, prefix.splits)), dim,
        )  # fmt: skip
        return output


class _Parts:
    """Buffers that `_split_kernel` fills for `_merge_kernel`; `number`: rows, or groups of rows that share a prefix."""

    def __init__(self, splits: int, queries: int, number: int, groups: int, dim: int, device: torch.device):
        self.splits, self.queries, self.number = splits, queries, number
        positions = number * groups * splits * queries
        self.outputs = torch.empty(positions, dim, device=device)
        self.weights = torch.empty(positions, 2, device=device)


@lru_cache
def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 8
