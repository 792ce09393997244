"""Convert the rows of a matrix to FP8 with one scale each, in one kernel: the input of a product in FP8."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK, _WARPS = 4096, 8


@triton.jit
def _scale_kernel(x_ptr, out_ptr, scale_ptr, columns, most, least, BLOCK: tl.constexpr):
    """One row, read twice; the second time it is still in the cache."""
    row = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, BLOCK)
    largest = tl.zeros([BLOCK], tl.float32)
    for start in range(0, columns, BLOCK):
        x = tl.load(x_ptr + row * columns + start + place, start + place < columns, other=0.0)
        largest = tl.maximum(largest, tl.abs(x.to(tl.float32)))
    scale = tl.maximum(tl.max(largest, 0) / most, least)
    tl.store(scale_ptr + row, scale)
    for start in range(0, columns, BLOCK):
        x = tl.load(x_ptr + row * columns + start + place, start + place < columns, other=0.0)
        scaled = (x.to(tl.float32) / scale).to(out_ptr.dtype.element_ty)
        tl.store(out_ptr + row * columns + start + place, scaled, start + place < columns)


def scale_rows(x: Tensor, dtype: torch.dtype, most: float, least: float) -> tuple[Tensor, Tensor]:
    """x [M, K] -> x / scale in `dtype`, and the scales, float32 [M, 1]: a row's largest magnitude becomes `most`.

    Args:
        least: smallest scale, for rows of zeros.
    """
    x = x.contiguous()
    out, scales = torch.empty_like(x, dtype=dtype), x.new_empty(len(x), 1, dtype=torch.float32)
    _scale_kernel[(len(x),)](x, out, scales, x.shape[1], most, least, _BLOCK, num_warps=_WARPS)
    return out, scales
