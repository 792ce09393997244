"""The summary cache: keys and values of prefix, beacons and text, each rotated once and never moved again.

Lengths come in two kinds. The *physical* length counts positions that are stored; RoPE positions and masks use it. The
*logical* length counts tokens of the expanded prompt (every visual token, no beacon); `generate` slices its prompt
with it. They differ by the visual tokens that compaction dropped.

Each decoder layer keeps its own part (`layers.py`). Where gradients must flow, `gradient.py` takes its place.

Shape letters: B batch, N key/value heads, T tokens of this step, M positions stored, D head dimension.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor
from transformers.cache_utils import Cache

from videoxl.cache.layers import GrowingLayer, SummaryLayer, WindowLayer
from videoxl.compression.plan import Window
from videoxl.errors import PlanError


class SummaryCache(Cache):
    """Key/value cache of one sequence (or of a batch with equal plans) over all decoder layers.

    Attributes:
        dropped: visual tokens that compaction removed minus the beacons it added: logical - physical length.
        window_ratios: compression ratio of every window read so far, in order.
        has_padding: whether rows were padded after the last visual span, so that masks are needed.
        position_gap: RoPE positions left out so far (training only): the next token is at physical length + gap.
    """

    layer_type: type[GrowingLayer] = SummaryLayer
    layers: list[WindowLayer]  # type: ignore[assignment]  # transformers' list may hold its own kinds too

    def __init__(self, num_layers: int, reserved: int = 0):
        super().__init__(layers=[self.layer_type(reserved) for _ in range(num_layers)])
        self.dropped = 0
        self.position_gap = 0
        self.window_ratios: list[int] = []
        self.has_padding = False
        self._compacted_length = 0

    def update_windows(
        self,
        key_states: Tensor,
        value_states: Tensor,
        layer_idx: int,
        beacons: tuple[Tensor, Tensor],
        lengths: Sequence[tuple[int, int]],
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """See `SummaryLayer.update_windows`; `close_windows` follows when all layers have read them."""
        return self.layers[layer_idx].update_windows(key_states, value_states, beacons, lengths)

    def advance(
        self, layer_idx: int, positions: int, key_states: Tensor, value_states: Tensor, head_dim: int
    ) -> tuple[Tensor, Tensor, int]:
        """See `SummaryLayer.advance`. `key_states`, `value_states` [B, T, N D] give new storage its shape, dtype and
        device."""
        layer = self.layers[layer_idx]
        if not layer.is_initialized:
            layer.lazy_initialization(
                *(x.unflatten(-1, (-1, head_dim)).transpose(1, 2) for x in (key_states, value_states))
            )
        return layer.advance(positions)

    def close_windows(self, windows: Sequence[Window], kept: Sequence[int]) -> None:
        """Count windows that all layers have read; `kept` gives the positions that stay of each."""
        self._compacted_length = self.get_query_offset()
        self.dropped += sum(window.num_tokens for window in windows) - sum(kept)
        self.window_ratios += [window.ratio for window in windows]

    def restore(self, logical_length: int, window_ratios: list[int]) -> None:
        """Set the counters of a cache whose layers were filled from a file."""
        self._compacted_length = self.get_query_offset()
        self.dropped = logical_length - self._compacted_length
        self.window_ratios = list(window_ratios)

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """Physical length: positions stored, and the offset of masks."""
        return self.layers[layer_idx].get_seq_length()

    @property
    def next_position(self) -> int:
        """RoPE position of the next token."""
        return self.get_query_offset() + self.position_gap

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Logical length: tokens of the expanded prompt and of the answer so far, beacons not counted."""
        return self.get_query_offset(layer_idx) + self.dropped

    def fork(self) -> SummaryCache:
        """A cache with the same content that grows independently of this one; see `SummaryLayer.fork`."""
        other = SummaryCache(0)
        other.layers = [layer.fork() for layer in self.layers]
        other.dropped = self.dropped
        other.window_ratios = list(self.window_ratios)
        other.has_padding = self.has_padding
        other._compacted_length = self._compacted_length
        return other

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last `-tokens_to_remove` tokens, at most the text after the last window. Raises `PlanError`."""
        if tokens_to_remove > 0:
            raise PlanError(f"crop({tokens_to_remove}): give the number of tokens to remove as a negative number")
        removable = self.get_query_offset() - self._compacted_length
        if -tokens_to_remove > removable:
            raise PlanError(f"crop({tokens_to_remove}): only {removable} tokens stand after the last window")
        super().crop(tokens_to_remove)

    def reserve(self, positions: int) -> None:
        """When storage is next needed, allocate room for `positions` in all, so that it does not grow step by step."""
        for layer in self.layers:
            layer.reserve(positions)

    def make_room(self, positions: int) -> None:
        """See `SummaryLayer.make_room`."""
        for layer in self.layers:
            layer.make_room(positions)

    def shared_prefix(self, layer_idx: int) -> tuple[Tensor, Tensor] | None:
        """Keys and values [1, N, M, D] that `update` leaves out because all rows share them; None where they do not."""
        return getattr(self.layers[layer_idx], "shared", None)

    @property
    def allocated_bytes(self) -> int:
        """Bytes of this cache's storage, spare room included; forks that share it each count it."""
        return sum(layer.allocated_bytes for layer in self.layers)

    @property
    def num_bytes(self) -> int:
        """Bytes of the stored positions (without spare room)."""
        return sum(part.numel() * part.element_size() for layer in self.layers for part in layer.stored)
