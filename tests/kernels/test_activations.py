"""The element-wise kernels give what PyTorch's operations one after the other give."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from interpreted import by_interpreter

pytest.importorskip("triton", reason="Triton is not installed here; the second environment has it")
from videoxl.kernels.activations import quick_gelu, swiglu
from videoxl.model.towers.clip import QuickGELU

pytestmark = by_interpreter


def test_they_equal_the_plain_operations():
    torch.manual_seed(0)
    x, y = torch.randn(3, 700) * 5, torch.randn(3, 700)
    torch.testing.assert_close(quick_gelu(x), QuickGELU()(x))
    torch.testing.assert_close(quick_gelu(x.t()), QuickGELU()(x.t()))  # not contiguous
    torch.testing.assert_close(swiglu(x.clone(), y), F.silu(x) * y)


def test_gradients_are_those_of_the_plain_operations():
    torch.manual_seed(0)
    x, y = ((torch.randn(5, 300) * 3).requires_grad_() for _ in range(2))
    for ours, plain, inputs in (
        (quick_gelu, QuickGELU(), (x,)),
        (swiglu, lambda a, b: F.silu(a) * b, (x, y)),
    ):
        weight = torch.randn(300, 5)
        found = torch.autograd.grad((ours(*inputs).t() * weight).sum(), inputs)
        expected = torch.autograd.grad((plain(*inputs).t() * weight).sum(), inputs)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [1, 2047, 2049])
def test_nothing_after_the_end_is_touched(size):
    room = torch.full((size + 10,), 2.0)
    swiglu(room[:size], torch.ones(size))
    assert (room[:size] != 2).all() and (room[size:] == 2).all()
