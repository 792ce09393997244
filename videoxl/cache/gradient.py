"""The summary cache while gradients flow: a list of key/value chunks that nothing overwrites.

Autograd needs every version of the cache that a step has seen. So keys and values are kept as the chunks that steps
added (a prefix, the beacons of windows, ...), and each step concatenates them for each of its windows: with
checkpointing these copies live only while their layer runs.

Shape letters: B batch, N key/value heads, T tokens of this step, M positions stored, D head dimension.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from videoxl.cache.layers import GrowingLayer
from videoxl.cache.summary import SummaryCache

KVChunk = tuple[Tensor, Tensor]
"""Keys and values [B, N, t, D] that one step added."""


class StepView:
    """What one step of one decoder layer sees of the cache, and what it adds to it; used once."""

    def __init__(self, kv_chunks: tuple[KVChunk, ...]):
        self.kv_chunks = kv_chunks
        self._added: KVChunk | None = None

    @property
    def new_chunk(self) -> KVChunk:
        """Keys and values that the step added: the beacons of its windows; for text, all of its tokens."""
        assert self._added is not None, "the step has not run yet"
        return self._added

    def update_windows(
        self,
        key_states: Tensor,
        value_states: Tensor,
        layer_idx: int,
        beacons: KVChunk,
        lengths: Sequence[tuple[int, int]],
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """As `SummaryLayer.update_windows`: for each window the keys and values that its queries may see."""
        memory = self.memory_with(beacons)
        seen = memory[0].shape[2] - beacons[0].shape[2]
        start = 0
        for rows, number in lengths:
            own = slice(start, start + rows)
            keys, values = (
                torch.cat([kept[:, :, :seen], states[:, :, own]], dim=2)
                for kept, states in zip(memory, (key_states, value_states))
            )
            yield keys, values
            start, seen = start + rows, seen + number

    def memory_with(self, beacons: KVChunk) -> tuple[Tensor, Tensor]:
        """Keys and values [B, N, M + b, D]: the stored positions and all windows' beacons, which the step adds."""
        # A copy: a view would keep the values of all of the windows' tokens alive.
        self._added = beacons[0], beacons[1].clone()
        keys, values = (torch.cat(kind, dim=2) for kind in zip(*self.kv_chunks, self._added))
        return keys, values

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int) -> tuple[Tensor, Tensor]:
        """As `SummaryLayer.update` for text: keys and values [B, N, M + T, D] that the step's queries may see."""
        self._added = key_states, value_states
        if not self.kv_chunks:
            return key_states, value_states
        keys = torch.cat([*(key for key, _ in self.kv_chunks), key_states], dim=2)
        return keys, torch.cat([*(value for _, value in self.kv_chunks), value_states], dim=2)


class GradientLayer(GrowingLayer):
    """Cache of one decoder layer as chunks; `VideoXLModel` adds them, not the decoder layer."""

    is_croppable = False

    def __init__(self, reserved: int = 0):
        super().__init__(reserved)
        self.kv_chunks: list[KVChunk] = []

    def add(self, chunk: KVChunk) -> None:
        """Keep what a step added."""
        self.kv_chunks.append(chunk)
        self.is_initialized = True

    def repeat(self, times: int) -> None:
        """Repeat each row `times` times, so that several texts can follow one context."""
        self.kv_chunks = [
            (keys.repeat_interleave(times, dim=0), values.repeat_interleave(times, dim=0))
            for keys, values in self.kv_chunks
        ]

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """transformers' protocol, for text after the context."""
        view = StepView(tuple(self.kv_chunks))
        keys, values = view.update(key_states, value_states, 0)
        self.add(view.new_chunk)
        return keys, values

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device

    @property
    def keys(self) -> Tensor | None:  # type: ignore[override]  # read-only here
        return torch.cat([key for key, _ in self.kv_chunks], dim=2) if self.kv_chunks else None

    @property
    def values(self) -> Tensor | None:  # type: ignore[override]
        return torch.cat([value for _, value in self.kv_chunks], dim=2) if self.kv_chunks else None

    @property
    def stored(self) -> list[Tensor]:
        """All keys and values, chunk by chunk."""
        return [part for chunk in self.kv_chunks for part in chunk]

    def get_seq_length(self) -> int:
        return sum(key.shape[2] for key, _ in self.kv_chunks)


class GradientCache(SummaryCache):
    """A `SummaryCache` through which gradients flow from later steps into earlier ones (docs/explanation/training.md).

    Attributes:
        uniform: whether every step calls the same modules, with or without beacons, as several processes need.
        defers_norm: whether steps leave the final norm to the caller, who needs it for a few rows only.
        beacon: the beacon embedding [1, 1, H] for all windows; None: each step looks it up.
    """

    layer_type = GradientLayer
    layers: list[GradientLayer]  # type: ignore[assignment]

    def __init__(self, num_layers: int, uniform: bool = False, defers_norm: bool = False):
        super().__init__(num_layers)
        self.uniform = uniform
        self.defers_norm = defers_norm
        self.beacon: torch.Tensor | None = None

    def repeat(self, times: int) -> None:
        """Repeat each row `times` times; rows b * times ... b * times + times - 1 are copies of row b."""
        for layer in self.layers:
            layer.repeat(times)
