"""A layer's matrix products when some rows have their own weights.

Shape letters: T rows of a step, t rows that pass through.
"""

from __future__ import annotations

from typing import TypeGuard

import torch
from torch import Tensor, nn

from videoxl.compression.rows import RowLayout
from videoxl.kernels import can_run


def project(x: Tensor, ordinary: nn.Module, beacon: nn.Module | None, window: RowLayout | None) -> Tensor:
    """Apply `ordinary` to every row of x [B, T, ...], but `beacon` to the beacon rows where there is one."""
    if window is None or beacon is None or not window.own_projections:
        return ordinary(x)
    tokens, beacons = x[:, : window.num_passing], x[:, window.num_passing :]
    one_row = len(x) == 1
    if one_row and is_plain_linear(ordinary) and is_plain_linear(beacon) and can_run(x, ordinary.weight, beacon.weight):
        # Two products into one tensor: concatenating their results would read and write them once more.
        output = x.new_empty(*x.shape[:-1], ordinary.out_features)
        _linear_into(output[0, : window.num_passing], tokens[0], ordinary)
        _linear_into(output[0, window.num_passing :], beacons[0], beacon)
        return output
    return torch.cat([ordinary(tokens), beacon(beacons)], dim=1)


def is_plain_linear(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether a call of the module is a product with its weight and nothing else (no adapter, no hook, not sharded)."""
    hooked = module._forward_hooks or module._forward_pre_hooks or hasattr(module, "_hf_hook")
    # The weight is named last: where DeepSpeed hooks a module, to name it would gather it, in this process alone.
    return not hooked and type(module) is nn.Linear and type(module.weight) is nn.Parameter


def _linear_into(output: Tensor, x: Tensor, linear: nn.Linear) -> None:
    """x [t, in] through a linear layer into `output` [t, out]."""
    weight = linear.weight.t()
    if linear.bias is None:
        torch.mm(x, weight, out=output)
    else:
        torch.addmm(linear.bias, x, weight, out=output)
