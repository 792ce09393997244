"""One stored prefix shared by many rows: several questions about one video, or the beams of one answer.

The positions of the video are stored once and read once per step, whatever the number of rows; each row stores only
its own text after them. Attention to the two parts is merged by `attend_shared` in `attention/backends.py`.

Shape letters: B rows, N key/value heads, T tokens of this step, M positions of the prefix, t own positions of a row,
D head dimension.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from videoxl.attention.backends import can_share_prefix
from videoxl.cache.layers import Storage, SummaryLayer, WindowLayer
from videoxl.cache.summary import SummaryCache


def repeat_rows(cache: SummaryCache, times: int, backend: str) -> None:
    """Repeat each row `times` times. A single row's positions are kept once if the attention back end allows it."""
    layers = [layer for layer in cache.layers if isinstance(layer, SummaryLayer) and layer.is_initialized]
    if len(layers) == len(cache.layers) and all(
        len(layer.content[0]) == 1 and can_share_prefix(backend, layer.content[0]) for layer in layers
    ):
        cache.layers = [SharedPrefixLayer(layer) for layer in layers]
    else:
        cache.batch_repeat_interleave(times)


class SharedPrefixLayer(WindowLayer):
    """Cache of one decoder layer: `prefix` [1, N, M, D], which stays as it is, and `own` [B, N, t, D], which grows.

    Its length is M + t. A window that is read here leaves its beacons in `own`.
    """

    def __init__(self, prefix: SummaryLayer, own: SummaryLayer | None = None):
        super().__init__()
        self.prefix = prefix
        self.own = SummaryLayer() if own is None else own
        self.is_initialized = True

    @property
    def shared(self) -> tuple[Tensor, Tensor] | None:
        """Keys and values of the prefix, each [1, N, M, D]; None where it was emptied."""
        return self.prefix.content if self.prefix.length else None

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """As `SummaryLayer.update`, but returns only each row's own keys and values [B, N, t + T, D]."""
        return self.own.update(key_states, value_states, *args, **kwargs)

    def update_windows(self, *args) -> Iterator[tuple[Tensor, Tensor]]:
        """As `SummaryLayer.update_windows`, but yields only each row's own keys and values."""
        return self.own.update_windows(*args)

    def advance(self, positions: int) -> tuple[Tensor, Tensor, int]:
        """As `SummaryLayer.advance`, on each row's own storage."""
        return self.own.advance(positions)

    def room_for(self, positions: int) -> Storage:
        return self.own.room_for(positions)

    @property
    def has_storage(self) -> bool:
        return self.own.has_storage

    def has_room_for(self, positions: int) -> bool:
        return self.own.has_room_for(positions)

    @property
    def growing(self) -> SummaryLayer:
        return self.own

    def forget_scratch(self) -> None:
        self.own.forget_scratch()

    def addresses(self) -> list[int]:
        """As `SummaryLayer.addresses`, the prefix after the rows' own."""
        return [*self.own.addresses()[:3], *self.prefix.addresses()[:3]]

    def fork(self) -> SharedPrefixLayer:
        """Another layer with the same content."""
        return SharedPrefixLayer(self.prefix.fork(), self.own.fork())

    @property
    def stored(self) -> list[Tensor]:
        """What is stored: keys and values of the prefix, once, and of all rows."""
        return [*self.prefix.stored, *self.own.stored]

    @property
    def allocated_bytes(self) -> int:
        return self.prefix.allocated_bytes + self.own.allocated_bytes

    def reserve(self, positions: int) -> None:
        self.own.reserve(max(0, positions - self.prefix.length))

    def make_room(self, positions: int) -> None:
        self.own.make_room(positions)

    # -- transformers' cache protocol ----------------------------------------------------------------------------

    @property
    def keys(self) -> Tensor:  # type: ignore[override]  # read-only here
        """[B, N, M + t, D], concatenated on each access; [1, N, M, D] while the rows have nothing of their own."""
        return self._joined(self.prefix.content[0], self.own.keys)

    @property
    def values(self) -> Tensor:  # type: ignore[override]
        return self._joined(self.prefix.content[1], self.own.values)

    @staticmethod
    def _joined(prefix: Tensor, own: Tensor | None) -> Tensor:
        return prefix if own is None else torch.cat([prefix.expand(len(own), -1, -1, -1), own], dim=2)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.own.lazy_initialization(key_states, value_states)

    def get_seq_length(self) -> int:
        return self.prefix.length + self.own.length

    def crop(self, tokens_to_remove: int) -> None:
        beyond = max(0, abs(tokens_to_remove) - self.own.length)
        self.own.crop(abs(tokens_to_remove) - beyond)
        if beyond:
            self.prefix.crop(beyond)

    def reset(self) -> None:
        self.prefix.reset()
        self.own.reset()

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.own.reorder_cache(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        self.own.batch_repeat_interleave(repeats)

    def batch_select_indices(self, indices: Tensor) -> None:
        self.own.batch_select_indices(indices)
