"""The element-wise kernels give what PyTorch's operations one after the other give."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("triton", reason="Triton is not installed here; the second environment has it")

from videoxl.kernels.activations import quick_gelu, swiglu
from videoxl.model.vision_tower import QuickGELU


def test_they_equal_the_plain_operations():
    torch.manual_seed(0)
    x, y = torch.randn(3, 700) * 5, torch.randn(3, 700)
    torch.testing.assert_close(quick_gelu(x), QuickGELU()(x))
    torch.testing.assert_close(quick_gelu(x.t()), QuickGELU()(x.t()))  # not contiguous
    torch.testing.assert_close(swiglu(x.clone(), y), F.silu(x) * y)


@pytest.mark.parametrize("size", [1, 2047, 2049])
def test_nothing_behind_the_end_is_touched(size):
    room = torch.zeros(size + 10)
    swiglu(room[:size], torch.ones(size))
    assert not room.any()
