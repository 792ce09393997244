"""Muon for the decoder's matrices, AdamW for all else, as one optimizer."""

from __future__ import annotations

from typing import Any

import torch
from torch.optim import Muon, Optimizer

from videoxl.train.parts import part_of


class MuonAndOther(Optimizer):
    """Steps torch's Muon and another optimizer together; groups and state are those of both.

    Muon (Jordan et al. 2024) makes the update of a matrix orthogonal. Its learning rate is scaled so that an entry
    moves as far as AdamW would move it at a fifth of that rate (`match_rms_adamw`, Liu et al. 2025).
    """

    def __init__(self, matrices: list[dict], learning_rate: float, other: Optimizer):
        """
        Args:
            matrices: parameter groups for Muon, two-dimensional weights, with their weight decay.
            learning_rate: of Muon. other: the optimizer of all other parameters.
        """
        # The other's groups come first: a trainer logs the rate of the first one.
        self._inner = (other, Muon(matrices, lr=learning_rate, adjust_lr_fn="match_rms_adamw"))
        super().__init__([{**group} for inner in self._inner for group in inner.param_groups], other.defaults)
        self._share([group for inner in self._inner for group in inner.param_groups], {})

    def _share(self, groups: list[dict], state: dict) -> None:
        """Let both work on one state, and each on its groups, which a scheduler changes here."""
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
    """Whether it is a matrix inside a decoder layer (no embeddings, no head, nothing of the tower)."""
    return parameter.ndim == 2 and ".layers." in name and part_of(name) in ("mm_language_model", "mm_beacon")
