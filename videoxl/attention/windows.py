"""Attention of all windows of a step with one backward pass, where a GPU has the flash operator.

Window by window, autograd would create a gradient as long as all windows for every slice of keys and values, and add
them up. These were most of a training step's kernels; launching them took longer than all other work on the GPU.

Shape letters: B batch, N query heads, G key/value heads, T positions of all windows, D head dimension, M positions that
were stored before, b beacons.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from videoxl.attention.backends import has_flash

aten = torch.ops.aten


def can_attend_together(backend: str, query: Tensor, masks: Sequence[Tensor | None], dropout: float) -> bool:
    """Whether `attend_windows` computes the same as the back end."""
    return backend == "sdpa" and dropout == 0.0 and has_flash(query) and all(mask is None for mask in masks)


def attend_windows(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    memory: tuple[Tensor, Tensor],
    lengths: Sequence[tuple[int, int]],
    scaling: float,
) -> Tensor:
    """Each window sees what is stored before it and, causally, its own positions.

    Args:
        query: [B, N, T, D]. key, value: [B, G, T, D]; windows one after the other, rotated.
        memory: keys and values [B, G, M + b, D], beacons of all windows after what was stored.
        lengths: positions of each window, and the beacons among them.

    Returns:
        [B, T, N, D].
    """
    return _Windows.apply(query, key, value, *memory, lengths, scaling)


class _Windows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query, key, value, memory_key, memory_value, lengths, scaling):
        outputs, sums = [], []
        draws: tuple[Tensor, ...] = ()
        for own, seen in _windows(lengths, memory_key.shape[2]):
            keys, values = _seen((key, value), (memory_key, memory_value), own, seen)
            output, total, draws = _attend(query[:, :, own], keys, values, scaling)
            outputs.append(output.transpose(1, 2))
            sums.append(total)
        output = torch.cat(outputs, dim=1)
        ctx.save_for_backward(query, key, value, memory_key, memory_value, output, *draws, *sums)
        ctx.lengths, ctx.scaling = lengths, scaling
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        query, key, value, memory_key, memory_value, output, *draws = ctx.saved_tensors
        draws, sums = draws[:2], draws[2:]
        gradient, output = gradient.transpose(1, 2), output.transpose(1, 2)
        queries: list[Tensor] = []
        own_keys: list[Tensor] = []
        own_values: list[Tensor] = []
        # Many windows add to the gradients of the first beacons, hence float32.
        to_memory = [torch.zeros_like(kind, dtype=torch.float32) for kind in (memory_key, memory_value)]
        for (own, seen), total in zip(_windows(ctx.lengths, memory_key.shape[2]), sums):
            keys, values = _seen((key, value), (memory_key, memory_value), own, seen)
            to_query, *to_seen = _backward(
                gradient[:, :, own], query[:, :, own], keys, values, output[:, :, own], total, draws, ctx.scaling
            )
            queries.append(to_query)
            for kind, part, owned in zip(to_memory, to_seen, (own_keys, own_values)):
                kind[:, :, :seen] += part[:, :, :seen]
                owned.append(part[:, :, seen:])
        to_own = [torch.cat(each, dim=2) for each in (queries, own_keys, own_values)]
        return *to_own, *(kind.to(key.dtype) for kind in to_memory), None, None


def _windows(lengths: Sequence[tuple[int, int]], end: int) -> Iterator[tuple[slice, int]]:
    """Positions of each window among those of all, and how many stored positions it sees. `end`: M + b."""
    start, seen = 0, end - sum(beacons for _, beacons in lengths)
    for length, beacons in lengths:
        yield slice(start, start + length), seen
        start, seen = start + length, seen + beacons


def _seen(own: tuple[Tensor, Tensor], memory: tuple[Tensor, Tensor], owned: slice, seen: int) -> list[Tensor]:
    """Keys and values [B, G, seen + t, D] of one window."""
    return [torch.cat([stored[:, :, :seen], each[:, :, owned]], dim=2) for each, stored in zip(own, memory)]


def _attend(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Output, logarithm of the sum of exponentials, and the random state of dropout: there is no dropout, so one
    window's state serves all.
    """
    found = aten._scaled_dot_product_flash_attention(query, key, value, 0.0, True, scale=scaling)
    return found[0], found[1], (found[6], found[7])


def _backward(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    total: Tensor,
    draws: Sequence[Tensor],
    scaling: float,
) -> tuple[Tensor, Tensor, Tensor]:
    return aten._scaled_dot_product_flash_attention_backward(
        gradient, query, key, value, output, total, None, None, query.shape[2], key.shape[2], 0.0, True, *draws,
        scale=scaling,
    )  # fmt: skip
