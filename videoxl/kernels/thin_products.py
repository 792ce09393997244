"""Products of a few rows with large weights, as decoding needs them: each weight is read once, at memory bandwidth.

The operations after a product in a decoder layer are fused into it: bias, SwiGLU of two products, the residual sum. A
decoded token takes hundreds of kernels, and the small ones take only as long as their launch, so there is one for
queries, keys and values, and one for gate and up. (The norm before a product is a separate kernel: every block would
have to repeat it, which costs more than it saves.)

Shape letters: R rows, K inputs, n outputs.
"""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor, nn

MOST_ROWS = 16  # the smallest tile of the tensor cores


@triton.jit
def _thin_kernel(
    X, OUT, W0, W1, W2, B0, B1, B2, RESIDUAL, rows, inputs, n0, n1, n2,
    BIASED: tl.constexpr, SUMMED: tl.constexpr, GATED: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, INPUTS: tl.constexpr, EVEN: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Some outputs of all rows. Outputs of three weights are side by side in OUT; with GATED, two weights give one."""
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
    for start in tl.range(0, inputs, INPUTS, num_stages=STAGES):
        if EVEN:
            x = tl.load(x_tile + start, real_row, other=0.0)
            w = tl.load(weight + tile + start, real_column, other=0.0)
        else:
            inside = (start + at < inputs)[None, :]
            x = tl.load(x_tile + start, real_row & inside, other=0.0)
            w = tl.load(weight + tile + start, real_column & inside, other=0.0)
        sums = tl.dot(x, tl.trans(w), sums)
        if GATED:
            if EVEN:
                w = tl.load(W1 + tile + start, real_column, other=0.0)
            else:
                w = tl.load(W1 + tile + start, real_column & inside, other=0.0)
            gated = tl.dot(x, tl.trans(w), gated)
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
    residual: Tensor | None = None,
    gated: bool = False,
) -> Tensor:
    """Products of x with one to three weights, concatenated.

    Args:
        x: [R, 1, K], contiguous, R up to `MOST_ROWS`.
        linears: layers with weights [n, K]; their biases are added if the first has one.
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
    columns, deep, warps, stages = _configuration(total)
    grid = sum(triton.cdiv(size, columns) for size in (sizes[:1] if gated else sizes))
    _thin_kernel[(grid,)](
        x, output, *weights, *biases, x if residual is None else residual, rows, inputs, *sizes,
        biased, residual is not None, gated, MOST_ROWS,
        columns, deep, inputs % deep == 0, stages, num_warps=warps, num_stages=stages,
    )  # fmt: skip
    return output


def _configuration(outputs: int) -> tuple[int, int, int, int]:
    """(outputs and inputs of a block, warps, stages): enough blocks to keep all processors reading.

    On an H100: 2.5 TB/s for 18,944 x 3,584, the same as PyTorch; 1.7 TB/s for 3,584 x 3,584 (PyTorch: 1.8).
    """
    return (16, 256, 2, 4) if outputs <= 8192 else (32, 128, 4, 4)
