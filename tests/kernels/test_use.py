"""Where kernels run: not without Triton, a GPU or half precision, and not where Triton cannot compile."""

from __future__ import annotations

import pytest
import torch
from interpreted import by_interpreter

pytest.importorskip("triton", reason="Triton is not installed here; the second environment has it")

from videoxl import kernels
from videoxl.kernels import activations

pytestmark = by_interpreter


@pytest.fixture(autouse=True)
def forgotten():
    """What was found out before."""
    kernels._compiles.cache_clear()
    yield
    kernels._compiles.cache_clear()


def test_they_do_not_take_tensors_on_the_cpu():
    assert not kernels.can_run(torch.zeros(3, dtype=torch.bfloat16))


def test_a_machine_without_a_compiler_is_told_once_and_goes_on(monkeypatch, recwarn):
    assert kernels._compiles(torch.device("cpu"))
    kernels._compiles.cache_clear()

    def broken(_):
        raise RuntimeError("Failed to find C compiler.\nPlease specify via CC environment variable")

    monkeypatch.setattr(activations, "quick_gelu", broken)
    for _ in range(2):
        assert not kernels._compiles(torch.device("cpu"))
    told = [str(each.message) for each in recwarn if "Triton" in str(each.message)]
    assert len(told) == 1 and "CC environment variable" in told[0] and "python3-dev" in told[0]
