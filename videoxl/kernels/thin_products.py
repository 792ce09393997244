"""Products of a few rows with large weights, as decoding needs them: each weight is read once, at the memory's speed.

What stands around a product in a decoder layer is done on the way: RMSNorm of its input, bias, SwiGLU of two products,
the residual sum. A decoded token is hundreds of products of which the small ones take as long as it takes to launch
them, so there is one kernel for queries, keys and values, and one for gate and up.

Shape letters: R rows, K inputs, n outputs.
"""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor, nn

MOST_ROWS = 16  # the fewest that tensor cores take at a time


@triton.jit
def _thin_kernel(
    X, OUT, W0, W1, W2, B0, B1, B2, NORM, RESIDUAL, rows, inputs, n0, n1, n2, eps,
    NORMED: tl.constexpr, BIASED: tl.constexpr, SUMMED: tl.constexpr, GATED: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, INPUTS: tl.constexpr, EVEN: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Some outputs of all rows. Three weights lie one behind the other in OUT; with GATED two make one output."""
    block = tl.program_id(0)
    total = n0
    weight, bias, n, offset = W0, B0, n0, 0
    if not GATED:
        total = n0 + n1 + n2
        blocks0, blocks1 = tl.cdiv(n0, COLUMNS), tl.cdiv(n1, COLUMNS)
        if block >= blocks0 + blocks1:
            weight, bias, n, offset = W2, B2, n2, n0 + n1
            block -= blocks0 + blocks1
        elif block >= blocks0:
            weight, bias, n, offset = W1, B1, n1, n0
            block -= blocks0
    row, column, at = tl.arange(0, ROWS), block * COLUMNS + tl.arange(0, COLUMNS), tl.arange(0, INPUTS)
    real_row, real_column = row[:, None] < rows, column[:, None] < n
    x_tile = X + row[:, None] * inputs + at[None, :]
    tile = column.to(tl.int64)[:, None] * inputs + at[None, :]
    sums = tl.zeros([ROWS, COLUMNS], tl.float32)
    gated = tl.zeros([ROWS, COLUMNS], tl.float32)
    squares = tl.zeros([ROWS], tl.float32)
    for start in tl.range(0, inputs, INPUTS, num_stages=STAGES):
        if EVEN:
            x = tl.load(x_tile + start, real_row, other=0.0)
            w = tl.load(weight + tile + start, real_column, other=0.0)
        else:
            inside = (start + at < inputs)[None, :]
            x = tl.load(x_tile + start, real_row & inside, other=0.0)
            w = tl.load(weight + tile + start, real_column & inside, other=0.0)
        if NORMED:
            wide = x.to(tl.float32)
            squares += tl.sum(wide * wide, 1)
            scale = tl.load(NORM + start + at, start + at < inputs, other=0.0).to(tl.float32)
            x = (wide * scale[None, :]).to(w.dtype)
        sums = tl.dot(x, tl.trans(w), sums)
        if GATED:
            if EVEN:
                w = tl.load(W1 + tile + start, real_column, other=0.0)
            else:
                w = tl.load(W1 + tile + start, real_column & inside, other=0.0)
            gated = tl.dot(x, tl.trans(w), gated)
    if NORMED:
        shrink = tl.rsqrt(squares / inputs + eps)[:, None]
        sums *= shrink
        gated *= shrink
    if GATED:
        sums = sums / (1.0 + tl.exp(-sums)) * gated
    if BIASED:
        sums += tl.load(bias + column, column < n, other=0.0).to(tl.float32)[None, :]
    place = row[:, None] * total + offset + column[None, :]
    wanted = real_row & (column[None, :] < n)
    if SUMMED:
        sums += tl.load(RESIDUAL + place, wanted, other=0.0).to(tl.float32)
    tl.store(OUT + place, sums.to(OUT.dtype.element_ty), wanted)


def thin_product(
    x: Tensor,
    linears: Sequence[nn.Linear],
    norm: nn.Module | None = None,
    residual: Tensor | None = None,
    gated: bool = False,
) -> Tensor:
    """Products of x with one to three weights, one behind the other.

    Args:
        x: [R, 1, K], contiguous, R up to `MOST_ROWS`.
        linears: layers whose weights [n, K] are taken, with their biases where the first has one.
        norm: RMSNorm (`weight`, `variance_epsilon`) of x before it.
        residual: [R, 1, n] to add.
        gated: silu(first product) * second product instead of both.

    Returns:
        [R, 1, n], n of all layers together, or of the first one where `gated`.
    """
    rows, inputs = x.shape[0], x.shape[-1]
    sizes = [linear.out_features for linear in linears]
    sizes += [0] * (3 - len(sizes))
    weights = [linear.weight for linear in linears] + [x] * (3 - len(linears))
    biased = linears[0].bias is not None
    biases = [linear.bias if biased else x for linear in linears] + [x] * (3 - len(linears))
    total = sizes[0] if gated else sum(sizes)
    output = x.new_empty(rows, 1, total)
    columns, deep, warps, stages = _configuration(total, inputs)
    grid = sum(triton.cdiv(size, columns) for size in (sizes[:1] if gated else sizes))
    _thin_kernel[(grid,)](
        x, output, *weights, *biases, x if norm is None else norm.weight, x if residual is None else residual,
        rows, inputs, *sizes, 0.0 if norm is None else norm.variance_epsilon,
        norm is not None, biased, residual is not None, gated, MOST_ROWS,
        columns, deep, inputs % deep == 0, stages, num_warps=warps, num_stages=stages,
    )  # fmt: skip
    return output


def _configuration(outputs: int, inputs: int) -> tuple[int, int, int, int]:
    """(outputs and inputs of a block, warps, stages): enough blocks to keep all processors reading."""
    return 16 if outputs <= 8192 else 32, 256, 4, 4
