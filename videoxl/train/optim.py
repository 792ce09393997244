"""One optimizer: Muon for the matrices of decoder and vision tower, AdamW for all other parameters."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor
from torch.optim import Muon, Optimizer

MOST_ELEMENTS = 1 << 24  # per batch of matrices, which is copied several times; larger ones go one by one


class BatchedMuon(Muon):
    """torch's Muon, with all matrices of one shape in one batch.

    The updates are the same (Jordan et al. 2024), also in bfloat16. A small model's matrices are so small that
    launching their products one by one took as long as the rest of a training step.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """Raises `ValueError` for a closure, which no trainer here gives."""
        if closure is not None:
            raise ValueError("this optimizer takes no closure")
        for group in self.param_groups:
            alike = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    alike[parameter.shape, parameter.dtype, parameter.device].append(parameter)
            for (shape, *_), parameters in alike.items():
                at_once = max(1, MOST_ELEMENTS // shape.numel())
                for start in range(0, len(parameters), at_once):
                    self._step_alike(group, shape, parameters[start : start + at_once])

    def _step_alike(self, group: dict[str, Any], shape: torch.Size, parameters: list[Tensor]) -> None:
        grads = [parameter.grad for parameter in parameters]
        for parameter in parameters:
            if "momentum_buffer" not in self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter.grad)
        buffers = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
        torch._foreach_lerp_(buffers, grads, 1 - group["momentum"])
        updates = torch._foreach_lerp(grads, buffers, group["momentum"]) if group["nesterov"] else buffers
        made = _orthogonal(torch.stack(updates), group["ns_coefficients"], group["ns_steps"], group["eps"])
        rate = group["lr"] * 0.2 * max(shape) ** 0.5
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(parameters, list(made.to(parameters[0].dtype).unbind()), alpha=-rate)


def _orthogonal(matrices: Tensor, coefficients: tuple[float, float, float], steps: int, least: float) -> Tensor:
    """[n, a, b] -> bfloat16 [n, a, b] with all singular values near 1, by Newton-Schulz iteration."""
    first, second, third = coefficients
    turned = matrices.shape[1] > matrices.shape[2]
    x = (matrices.mT if turned else matrices).to(torch.bfloat16)
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=least)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=second, alpha=third), x, beta=first)
    return x.mT if turned else x


class MuonAndOther(Optimizer):
    """Steps Muon and another optimizer together, and holds the parameter groups and state of both.

    Muon orthogonalises the update of a matrix. Its learning rate is scaled so that the update has
    the RMS of AdamW's at a fifth of that rate (`match_rms_adamw`, Liu et al. 2025).
    """

    def __init__(self, matrices: list[dict], learning_rate: float, other: Optimizer):
        """
        Args:
            matrices: parameter groups for Muon: two-dimensional weights, with their weight decay.
            learning_rate: Muon's. other: the optimizer of all other parameters.
        """
        # The other optimizer's groups come first, since a trainer logs the rate of the first group.
        self._inner = (other, BatchedMuon(matrices, lr=learning_rate, adjust_lr_fn="match_rms_adamw"))
        super().__init__([{**group} for inner in self._inner for group in inner.param_groups], other.defaults)
        self._share([group for inner in self._inner for group in inner.param_groups], {})

    def _share(self, groups: list[dict], state: dict) -> None:
        """Share one state between both, and give each its groups, so that a scheduler's changes here reach them."""
        number = len(self._inner[0].param_groups)
        self._inner[0].param_groups, self._inner[1].param_groups = groups[:number], groups[number:]
        self.param_groups = groups
        self.state.clear()
        self.state.update(state)
        for inner in self._inner:
            inner.state = self.state

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """Raises `ValueError` for a closure, which no trainer here gives."""
        if closure is not None:
            raise ValueError("this optimizer takes no closure")
        for inner in self._inner:
            inner.step()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._share(self.param_groups, dict(self.state))


def is_for_muon(name: str, parameter: torch.nn.Parameter) -> bool:
    """Whether it is a matrix inside a layer of decoder or tower (no embeddings, no head, not the projector)."""
    return parameter.ndim == 2 and ".layers." in name
