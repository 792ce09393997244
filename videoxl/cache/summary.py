"""The summary cache: keys and values of prefix, beacons and text, each rotated once and never moved again.

Lengths come in two kinds. The *physical* length counts positions that are stored; RoPE positions and masks use it. The
*logical* length counts tokens of the expanded prompt (every visual token, no beacon); `generate` slices its prompt
with it. They differ by the visual tokens that compaction dropped.

Storage is preallocated and shared between forks: a fork costs nothing until two holders both want to write after the
same point, then the later one takes a copy of its own. Where gradients must flow, `gradient.py` takes its place.

Shape letters: B batch, N key/value heads, T tokens of this step, M positions stored, D head dimension.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from videoxl.compression.plan import Window
from videoxl.errors import PlanError

_GROWTH_QUANTUM = 2048  # positions; a window of 1440 tokens at ratio 8 needs 1620


class _Storage:
    """Keys and values [B, N, capacity, D] with the layers that read them."""

    def __init__(self, keys: Tensor, values: Tensor):
        self.keys = keys
        self.values = values
        self.holders: weakref.WeakSet[SummaryLayer] = weakref.WeakSet()
        self.lock = threading.RLock()


class GrowingLayer(CacheLayerMixin):
    """What transformers' protocol asks of a cache of one decoder layer that has no largest length."""

    is_croppable = True
    is_sliding = False
    supports_early_init = False

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        return -1

    def get_max_cache_shape(self) -> int:
        return -1


class SummaryLayer(GrowingLayer):
    """Cache of one decoder layer. `length` positions are stored; what stands after them is scratch."""

    def __init__(self, reserved: int = 0):
        self._storage: _Storage | None = None
        self.length = 0
        self._extent = 0  # positions in use, scratch included: what another holder must not write over
        self.reserved = reserved
        self.is_initialized = False

    # -- what attention sees -------------------------------------------------------------------------------------

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Add the keys and values of text and return all that its queries may see.

        Args:
            key_states, value_states: [B, N, T, D], keys rotated to their positions in this step.

        Returns:
            Keys and values [B, N, M + T, D].
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        keys, values = self._write(key_states, value_states)
        self.length += key_states.shape[2]
        return keys[:, :, : self.length], values[:, :, : self.length]

    def update_windows(
        self,
        key_states: Tensor,
        value_states: Tensor,
        beacons: tuple[Tensor, Tensor],
        lengths: Sequence[tuple[int, int]],
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """For each window the keys and values [B, N, M + t, D] that its queries may see; to be iterated to the end.

        A window's own stand after what is stored only until the next one is asked for: then its beacons take their
        place.

        Args:
            key_states, value_states: [B, N, T, D] of all windows, one after the other, keys rotated to their positions.
            beacons: keys (rotated to their final positions) and values [B, N, b, D] that all windows leave.
            lengths: positions of each window, and the beacons among them.
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = left = 0
        for rows, number in lengths:
            own = (states[:, :, start : start + rows] for states in (key_states, value_states))
            keys, values = self._write(*own)
            end = self.length + rows
            yield keys[:, :, :end], values[:, :, :end]
            self._write(*(kind[:, :, left : left + number] for kind in beacons))
            self.length += number
            start, left = start + rows, left + number
        self._extent = self.length

    def advance(self, positions: int) -> tuple[Tensor, Tensor, int]:
        """Count so many more positions as stored, for a kernel that writes them itself.

        Returns:
            Keys and values [B, N, capacity, D] of the storage, and the first of the new positions in them.
        """
        start = self.length
        storage = self.room_for(positions)
        self.length += positions
        return storage.keys, storage.values, start

    def _write(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Put keys and values after `length`; returns the tensors that hold everything up to there."""
        start, end = self.length, self.length + keys.shape[2]
        storage = self.room_for(keys.shape[2])
        storage.keys[:, :, start:end] = keys
        storage.values[:, :, start:end] = values
        return storage.keys, storage.values

    def room_for(self, positions: int) -> _Storage:
        """Storage where so many positions after `length` may be written, marked as in use; they do not count yet."""
        storage = self._storage
        end = self.length + positions
        with storage.lock:
            in_place = self.has_room_for(positions)
            if in_place:
                self._extent = end
        if not in_place:
            self._reallocate(end)
            self._extent = end
        return self._storage

    def _reallocate(self, needed: int) -> None:
        """Move the stored positions into storage of this layer's own, with room to grow by an eighth."""
        capacity = max(needed + max(_GROWTH_QUANTUM, needed // 8), self.reserved)
        self._own(*(_resized(old, self.length, capacity) for old in (self._storage.keys, self._storage.values)))

    def _own(self, keys: Tensor, values: Tensor) -> None:
        if self._storage is not None:
            self._storage.holders.discard(self)
        self._storage = _Storage(keys, values)
        self._storage.holders.add(self)
        self._extent = self.length
        self.is_initialized = True

    @property
    def has_storage(self) -> bool:
        return self._storage is not None

    def has_room_for(self, positions: int) -> bool:
        """Whether so many could be written after `length` as the storage is."""
        return self.length + positions <= self._storage.keys.shape[2] and not self._is_shared_past_length()

    def forget_scratch(self) -> None:
        """Nothing after `length` is in use any more."""
        self._extent = self.length

    def _is_shared_past_length(self) -> bool:
        """Whether another holder has something after `length`."""
        return any(holder is not self and holder._extent > self.length for holder in self._storage.holders)

    def addresses(self) -> list[int]:
        """Where kernels that are not handed the storage find it: see `ADDRESSES` in `videoxl/kernels/decode.py`."""
        storage = self._storage
        return [storage.keys.data_ptr(), storage.values.data_ptr(), storage.keys.shape[2], 0, 0, 0]

    @property
    def stored(self) -> list[Tensor]:
        """What is stored, without room for more: keys and values, or nothing yet."""
        return [] if self._storage is None else [self.keys, self.values]

    @property
    def allocated_bytes(self) -> int:
        """Bytes of the storage, room for more included."""
        parts = [] if self._storage is None else (self._storage.keys, self._storage.values)
        return sum(part.numel() * part.element_size() for part in parts)

    @property
    def is_shared(self) -> bool:
        """Whether other layers hold the same storage."""
        return self._storage is not None and len(self._storage.holders) > 1

    def reserve(self, positions: int) -> None:
        """Have room for that many when storage is next made."""
        self.reserved = max(self.reserved, positions)

    def make_room(self, positions: int) -> None:
        """Have storage for so many more positions, and for text after them, which forks can then write in place."""
        needed = self.length + positions + _GROWTH_QUANTUM
        if self.is_initialized and needed > self._storage.keys.shape[2]:
            self._reallocate(needed)

    def fork(self) -> SummaryLayer:
        """Another layer with the same content; storage is shared until both write."""
        other = SummaryLayer(self.reserved)
        other.length = other._extent = self.length
        other.is_initialized = self.is_initialized
        if self._storage is not None:
            other._storage = self._storage
            with self._storage.lock:
                self._storage.holders.add(other)
        return other

    def replace(self, keys: Tensor, values: Tensor) -> None:
        """Take a copy of [B, N, M, D] tensors as the whole content."""
        self.length = keys.shape[2]
        self._own(*(_resized(new, self.length, self.length) for new in (keys, values)))

    # -- transformers' cache protocol ----------------------------------------------------------------------------

    @property
    def keys(self) -> Tensor | None:
        return None if self._storage is None else self._storage.keys[:, :, : self.length]

    @property
    def values(self) -> Tensor | None:
        return None if self._storage is None else self._storage.values[:, :, : self.length]

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self._own(*(_resized(new, 0, 0) for new in (key_states, value_states)))

    def get_seq_length(self) -> int:
        return self.length

    def crop(self, tokens_to_remove: int) -> None:
        self.length -= abs(tokens_to_remove)
        self._extent = self.length

    def reset(self) -> None:
        self.__init__(self.reserved)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.is_initialized:
            self.replace(self.keys.repeat_interleave(repeats, dim=0), self.values.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        if not self.is_initialized:
            return
        indices = indices.to(self.keys.device)
        chosen = self.keys.index_select(0, indices), self.values.index_select(0, indices)
        if len(indices) != len(self.keys) or self.is_shared:
            self.replace(*chosen)
            return
        self.keys.copy_(chosen[0])  # beams are reordered at every token: room for more is kept
        self.values.copy_(chosen[1])


def _resized(tensor: Tensor, length: int, capacity: int) -> Tensor:
    """A new [B, N, capacity, D] tensor that starts with the first `length` positions of `tensor`."""
    batch, heads, _, dim = tensor.shape
    # A plain tensor also inside inference mode: a memory made there may be asked outside of it.
    with torch.inference_mode(False), torch.no_grad():
        resized = torch.empty(batch, heads, capacity, dim, dtype=tensor.dtype, device=tensor.device)
    resized[:, :, :length] = tensor[:, :, :length]
    return resized


class SummaryCache(Cache):
    """Key/value cache of one sequence (or of a batch with equal plans) over all decoder layers.

    Attributes:
        dropped: visual tokens that compaction removed, beacons counted against them: logical - physical length.
        window_ratios: compression ratio of every window read so far, in order.
        has_padding: whether rows were padded after the last visual span, so that masks are needed.
        position_gap: RoPE positions left out so far (training only): the next token stands at physical length + gap.
    """

    layer_type: type[CacheLayerMixin] = SummaryLayer

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
        """See `SummaryLayer.advance`. `key_states`, `value_states` [B, T, N D]: what storage is made like, if there is
        none yet."""
        layer = self.layers[layer_idx]
        if not layer.is_initialized:
            states = (x.unflatten(-1, (-1, head_dim)).transpose(1, 2) for x in (key_states, value_states))
            layer.lazy_initialization(*states)
        return layer.advance(positions)

    def close_windows(self, windows: Sequence[Window], kept: Sequence[int]) -> None:
        """Count windows that all layers have read: of each one's tokens so many positions stay."""
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
        """Remove the last `-tokens_to_remove` tokens; only text after the last window can be removed."""
        if tokens_to_remove > 0:
            raise PlanError(f"crop({tokens_to_remove}): give the number of tokens to remove as a negative number")
        removable = self.get_query_offset() - self._compacted_length
        if -tokens_to_remove > removable:
            raise PlanError(f"crop({tokens_to_remove}): only {removable} tokens stand after the last window")
        super().crop(tokens_to_remove)

    def reserve(self, positions: int) -> None:
        """Allocate room for `positions` in all when storage is next needed, so that it need not grow step by step."""
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
        """Bytes of this cache's storage, room kept for more included; forks that share it each count it."""
        return sum(layer.allocated_bytes for layer in self.layers)

    @property
    def num_bytes(self) -> int:
        """Bytes of the stored positions (not of the room kept for more)."""
        return sum(part.numel() * part.element_size() for layer in self.layers for part in layer.stored)
