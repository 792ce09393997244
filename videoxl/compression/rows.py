"""The positions of some windows' decoder rows, and which rows stay: as integers, then on a device.

Rows are kept *grouped*: those that only pass through first, those that stay after them. Norms, projections and MLP do
not care about order, so they work on two contiguous slices; only queries, keys and values are brought into the order of
the sequence, which causal attention needs.

Shape letters: B batch, T rows of all windows, b rows that stay, D head dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from videoxl.utils.transfer import send


@dataclass(eq=False)
class RowPlan:
    """The rows of some windows.

    Attributes:
        num_passing: rows that only pass through; they come first.
        positions: [T] int64, index of each grouped row in the sequence of all windows, one after the other.
        owners: [T] int64, the index of each grouped row's window.
        lengths: for each window, its number of rows and how many of them stay.
        own_projections: whether the rows that stay use the projections that the method has in the checkpoint.
    """

    num_passing: int
    positions: np.ndarray
    owners: np.ndarray
    lengths: tuple[tuple[int, int], ...]
    own_projections: bool = False
    _on: dict[torch.device, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict, repr=False)

    @classmethod
    def interleave(cls, windows: Sequence[tuple[np.ndarray, np.ndarray]], own_projections: bool = False) -> RowPlan:
        """Build a plan from the positions of passing and staying rows in each window (int64, each ascending)."""
        passing, staying, start = [], [], 0
        for of_passing, of_staying in windows:
            passing.append(of_passing + start)
            staying.append(of_staying + start)
            start += len(of_passing) + len(of_staying)
        parts = (passing, staying)
        owners = [np.full(len(part), number) for each in parts for number, part in enumerate(each)]
        lengths = tuple((len(first) + len(second), len(second)) for first, second in windows)
        return cls(
            sum(map(len, passing)),
            np.concatenate([*passing, *staying]),
            np.concatenate(owners),
            lengths,
            own_projections,
        )

    def on(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """(permutation, positions, owners) as int64 [T] on a device; permutation: the grouped row at each position."""
        if device not in self._on:
            with torch.inference_mode(False):  # an inference tensor kept here could not be used in training
                self._on[device] = (
                    send(torch.from_numpy(self.positions.argsort()), device),
                    send(torch.from_numpy(self.positions), device),
                    send(torch.from_numpy(self.owners), device),
                )
        return self._on[device]


@dataclass
class RowLayout:
    """Which rows of a step pass through, as projections need it.

    Text gets such a layout if all steps must call the same modules, as wrappers that gather parameters need: its step
    then calls the compressor's modules on zero rows.

    Attributes:
        num_passing: rows that only pass through, the first ones; the rest stay in the cache.
        own_projections: whether the staying rows have projections of their own.
    """

    num_passing: int
    own_projections: bool = True

    def to(self, device: torch.device, non_blocking: bool = False, **_) -> RowLayout:
        """The same layout on another device; accelerate's hooks call it if layers are on several devices."""
        return self


@dataclass(kw_only=True)
class WindowLayout(RowLayout):
    """How the grouped rows of windows map to their sequences, as a decoder layer needs it.

    Attributes:
        permutation: [T] int64, the grouped row at each position of the sequence.
        positions: [T] int64, index in the sequence of each grouped row (the inverse of `permutation`).
        memory_rope: cosine and signed sine [1, b, D] of the positions that the staying rows take in the cache.
        lengths: for each window, its number of rows and how many of them stay.
        blocks: [blocks, 4] int32 from `query_blocks` (`videoxl/kernels/windows.py`); None if it does not run.
    """

    permutation: Tensor
    positions: Tensor
    memory_rope: tuple[Tensor, Tensor]
    lengths: tuple[tuple[int, int], ...]
    blocks: Tensor | None = None

    def to(self, device: torch.device, non_blocking: bool = False, **_) -> WindowLayout:
        def moved(x: Tensor) -> Tensor:
            return x.to(device, non_blocking=non_blocking)

        return replace(
            self,
            permutation=moved(self.permutation),
            positions=moved(self.positions),
            memory_rope=(moved(self.memory_rope[0]), moved(self.memory_rope[1])),
            blocks=None if self.blocks is None else moved(self.blocks),
        )
