"""The summary cache while gradients flow: a list of pieces that nothing writes over.

Autograd needs every version of the cache that a step has seen. So keys and values are kept as the pieces the steps
left (a prefix, the beacons of windows, ...), and a step joins them for itself, for each of its windows: with
checkpointing the joined copies live only while their layer runs.

Shape letters: B batch, N key/value heads, T tokens of this step, M positions stored, D head dimension.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from videoxl.cache.summary import GrowingLayer, SummaryCache

Piece = tuple[Tensor, Tensor]
"""Keys and values [B, N, t, D] that one step left."""


class StepView:
    """What one step of one decoder layer sees of the cache, and what it makes for it; used once.

    Attributes:
        made: keys and values the step leaves: the beacons of its windows, all its own for text.
    """

    def __init__(self, pieces: tuple[Piece, ...]):
        self.pieces = pieces
        self.made: Piece | None = None

    def update_windows(
        self,
        key_states: Tensor,
        value_states: Tensor,
        layer_idx: int,
        beacons: Piece,
        lengths: Sequence[tuple[int, int]],
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """As `SummaryLayer.update_windows`: for each window the keys and values that its queries may see."""
        memory = self.memory_with(beacons)
        seen = memory[0].shape[2] - beacons[0].shape[2]
        start = 0
        for rows, number in lengths:
            own = (states[:, :, start : start + rows] for states in (key_states, value_states))
            yield tuple(torch.cat([kind[:, :, :seen], states], dim=2) for kind, states in zip(memory, own))
            start, seen = start + rows, seen + number

    def memory_with(self, beacons: Piece) -> tuple[Tensor, Tensor]:
        """Keys and values [B, N, M + b, D]: what is stored and the beacons of all windows, which the step leaves."""
        # A copy: as a view they would keep the values of all tokens of the windows.
        self.made = beacons[0], beacons[1].clone()
        keys, values = (torch.cat(kind, dim=2) for kind in zip(*self.pieces, self.made))
        return keys, values

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int) -> tuple[Tensor, Tensor]:
        """As `SummaryLayer.update` for text: keys and values [B, N, M + T, D] that the step's queries may see."""
        self.made = key_states, value_states
        if not self.pieces:
            return key_states, value_states
        keys = torch.cat([*(key for key, _ in self.pieces), key_states], dim=2)
        return keys, torch.cat([*(value for _, value in self.pieces), value_states], dim=2)


class GradientLayer(GrowingLayer):
    """Cache of one decoder layer as pieces; the runner adds them, no layer does."""

    is_croppable = False

    def __init__(self, reserved: int = 0):
        self.reserved = reserved
        self.pieces: list[Piece] = []
        self.is_initialized = False

    def add(self, made: Piece) -> None:
        """Keep what a step made."""
        self.pieces.append(made)
        self.is_initialized = True

    def repeat(self, times: int) -> None:
        """Each row `times` over, so that several texts can follow one context."""
        self.pieces = [tuple(x.repeat_interleave(times, dim=0) for x in piece) for piece in self.pieces]

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """transformers' protocol, for text behind the context."""
        view = StepView(tuple(self.pieces))
        keys, values = view.update(key_states, value_states, 0)
        self.add(view.made)
        return keys, values

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device

    @property
    def keys(self) -> Tensor | None:
        return torch.cat([key for key, _ in self.pieces], dim=2) if self.pieces else None

    @property
    def values(self) -> Tensor | None:
        return torch.cat([value for _, value in self.pieces], dim=2) if self.pieces else None

    @property
    def stored(self) -> list[Tensor]:
        """All keys and values, piece by piece."""
        return [part for piece in self.pieces for part in piece]

    def get_seq_length(self) -> int:
        return sum(key.shape[2] for key, _ in self.pieces)


class GradientCache(SummaryCache):
    """A `SummaryCache` through which gradients flow from later steps into earlier ones (docs/explanation/training.md).

    Attributes:
        uniform: whether every step calls the same modules, beacons or not; for several processes in step.
        defers_norm: whether steps leave the final norm to the caller, who needs it for a few rows only.
        beacon: the beacon embedding [1, 1, H] for all windows; None: each looks it up.
    """

    layer_type = GradientLayer

    def __init__(self, num_layers: int, uniform: bool = False, defers_norm: bool = False):
        super().__init__(num_layers)
        self.uniform = uniform
        self.defers_norm = defers_norm
        self.beacon: torch.Tensor | None = None

    def repeat(self, times: int) -> None:
        """Each row `times` over; rows b * times ... b * times + times - 1 follow row b."""
        for layer in self.layers:
            layer.repeat(times)
