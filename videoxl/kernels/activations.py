"""Element-wise kernels of the two MLPs: quick GELU of CLIP's, SwiGLU of Qwen2's; one pass over memory each.

Source of the functions: CLIP's `QuickGELU`, x * sigmoid(1.702 x); Qwen2's gate, silu(x) * y.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK, _WARPS = 2048, 4


@triton.jit
def _quick_gelu_kernel(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    places = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + places, places < n, other=0.0)
    wide = x.to(tl.float32)
    tl.store(out_ptr + places, (wide / (1.0 + tl.exp(-1.702 * wide))).to(x.dtype), places < n)


@triton.jit
def _swiglu_kernel(gate_ptr, up_ptr, out_ptr, n, BLOCK: tl.constexpr):
    places = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    gate = tl.load(gate_ptr + places, places < n, other=0.0)
    up = tl.load(up_ptr + places, places < n, other=0.0)
    wide = gate.to(tl.float32)
    silu = (wide / (1.0 + tl.exp(-wide))).to(gate.dtype)  # rounded here, as two kernels would
    tl.store(out_ptr + places, silu * up, places < n)


def quick_gelu(x: Tensor) -> Tensor:
    """x * sigmoid(1.702 x), rounded once. Any shape, half precision -> the same shape and dtype."""
    x = x.contiguous()
    out = torch.empty_like(x)
    _quick_gelu_kernel[(triton.cdiv(x.numel(), _BLOCK),)](x, out, x.numel(), _BLOCK, num_warps=_WARPS)
    return out


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, in the place of `gate`, which must be contiguous. Two tensors of one shape -> `gate`."""
    up = up.contiguous()
    _swiglu_kernel[(triton.cdiv(gate.numel(), _BLOCK),)](gate, up, gate, gate.numel(), _BLOCK, num_warps=_WARPS)
    return gate
