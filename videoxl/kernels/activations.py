"""Element-wise kernels of the two MLPs: CLIP's quick GELU, Qwen2's SwiGLU; one pass over memory each way.

Source of the functions: CLIP's `QuickGELU`, x * sigmoid(1.702 x); Qwen2's gate, silu(x) * y.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

_BLOCK, _WARPS = 2048, 4


@triton.jit
def _quick_gelu_kernel(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offsets, offsets < n, other=0.0)
    wide = x.to(tl.float32)
    tl.store(out_ptr + offsets, (wide / (1.0 + tl.exp(-1.702 * wide))).to(x.dtype), offsets < n)


@triton.jit
def _swiglu_kernel(gate_ptr, up_ptr, out_ptr, n, BLOCK: tl.constexpr):
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    gate = tl.load(gate_ptr + offsets, offsets < n, other=0.0)
    up = tl.load(up_ptr + offsets, offsets < n, other=0.0)
    wide = gate.to(tl.float32)
    silu = (wide / (1.0 + tl.exp(-wide))).to(gate.dtype)  # rounded here, as two kernels would
    tl.store(out_ptr + offsets, silu * up, offsets < n)


@triton.jit
def _quick_gelu_back_kernel(x_ptr, grad_ptr, out_ptr, n, BLOCK: tl.constexpr):
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offsets, offsets < n, other=0.0).to(tl.float32)
    grad = tl.load(grad_ptr + offsets, offsets < n, other=0.0)
    share = 1.0 / (1.0 + tl.exp(-1.702 * x))
    slope = share * (1.0 + 1.702 * x * (1.0 - share))
    tl.store(out_ptr + offsets, (slope * grad.to(tl.float32)).to(grad.dtype), offsets < n)


@triton.jit
def _swiglu_back_kernel(gate_ptr, up_ptr, grad_ptr, gate_out_ptr, up_out_ptr, n, BLOCK: tl.constexpr):
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    gate = tl.load(gate_ptr + offsets, offsets < n, other=0.0)
    up = tl.load(up_ptr + offsets, offsets < n, other=0.0).to(tl.float32)
    grad = tl.load(grad_ptr + offsets, offsets < n, other=0.0).to(tl.float32)
    wide = gate.to(tl.float32)
    share = 1.0 / (1.0 + tl.exp(-wide))
    slope = share * (1.0 + wide * (1.0 - share))
    tl.store(gate_out_ptr + offsets, (grad * up * slope).to(gate.dtype), offsets < n)
    tl.store(up_out_ptr + offsets, (grad * wide * share).to(gate.dtype), offsets < n)


class _QuickGELU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return _quick_gelu(x)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        grad, out = grad.contiguous(), torch.empty_like(x)
        _launch(_quick_gelu_back_kernel, x, grad, out)
        return out


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        out = torch.empty_like(gate)
        _launch(_swiglu_kernel, gate, up, out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        grad, outs = grad.contiguous(), (torch.empty_like(gate), torch.empty_like(up))
        _launch(_swiglu_back_kernel, gate, up, grad, *outs)
        return outs


def quick_gelu(x: Tensor) -> Tensor:
    """x * sigmoid(1.702 x), rounded once. Any shape, half precision -> the same shape and dtype."""
    x = x.contiguous()
    return _QuickGELU.apply(x) if torch.is_grad_enabled() and x.requires_grad else _quick_gelu(x)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up. Two tensors of one shape -> one like them: `gate` itself, overwritten, without gradients."""
    gate, up = gate.contiguous(), up.contiguous()
    if torch.is_grad_enabled() and (gate.requires_grad or up.requires_grad):
        return _SwiGLU.apply(gate, up)
    _launch(_swiglu_kernel, gate, up, gate)
    return gate


def _quick_gelu(x: Tensor) -> Tensor:
    out = torch.empty_like(x)
    _launch(_quick_gelu_kernel, x, out)
    return out


def _launch(kernel, *tensors: Tensor) -> None:
    number = tensors[0].numel()
    kernel[(triton.cdiv(number, _BLOCK),)](*tensors, number, _BLOCK, num_warps=_WARPS)
