"""Products of a few rows, with what stands around them in a layer, equal the layer's own operations."""

from __future__ import annotations

import pytest
import torch
from interpreted import by_interpreter
from torch import nn

pytest.importorskip("triton", reason="Triton is not installed here; the second environment has it")
from videoxl.kernels.thin_products import MOST_ROWS, thin_product
from videoxl.model.decoder.decode_graph import plain_product

pytestmark = by_interpreter


@torch.no_grad()
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize(
    ("rows", "inputs", "outputs"),
    [(1, 512, (48, 16, 16)), (3, 300, (40,)), (MOST_ROWS, 256, (33, 70))],  # sizes that no block divides, too
)
def test_it_equals_the_plain_operations(rows, inputs, outputs, biased):
    torch.manual_seed(0)
    x = torch.randn(rows, 1, inputs)
    linears = [nn.Linear(inputs, number, bias=biased) for number in outputs]
    for given in ({}, {"residual": torch.randn(rows, 1, sum(outputs))}):
        expected = plain_product(x, linears, **given)
        torch.testing.assert_close(thin_product(x, linears, **given), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_gate_and_up_in_one(tiny):
    _, model, _ = tiny
    mlp = model.model.layers[0].mlp
    x = torch.randn(2, 1, 96)
    middle = thin_product(x, (mlp.gate_proj, mlp.up_proj), gated=True)
    found = thin_product(middle, (mlp.down_proj,), residual=x)
    torch.testing.assert_close(found, x + mlp(x), atol=1e-5, rtol=1e-5)
