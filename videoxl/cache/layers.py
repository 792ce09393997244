"""The summary cache of one decoder layer: preallocated storage that forks share until two of them write.

A fork costs nothing until two holders write after the same point; then the later one makes its own copy.

Shape letters: B batch, N key/value heads, T tokens of this step, M positions stored, D head dimension.
"""

from __future__ import annotations

import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

_GROWTH_QUANTUM = 2048  # positions; a window of 1440 tokens at ratio 8 needs 1620


class Storage:
    """Keys and values [B, N, capacity, D] with the layers that read them."""

    def __init__(self, keys: Tensor, values: Tensor):
        self.keys = keys
        self.values = values
        self.holders: weakref.WeakSet[SummaryLayer] = weakref.WeakSet()
        self.lock = threading.RLock()


class GrowingLayer(CacheLayerMixin):
    """The part of transformers' cache-layer protocol that is the same for all layers without a maximum length."""

    is_croppable = True
    is_sliding = False
    supports_early_init = False

    def __init__(self, reserved: int = 0):
        self.reserved = reserved
        self.is_initialized = False

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        return -1

    def get_max_cache_shape(self) -> int:
        return -1


class WindowLayer(GrowingLayer, ABC):
    """The interface that `SummaryCache` needs of a decoder layer's cache. `SummaryLayer` documents the methods."""

    @abstractmethod
    def update_windows(
        self,
        key_states: Tensor,
        value_states: Tensor,
        beacons: tuple[Tensor, Tensor],
        lengths: Sequence[tuple[int, int]],
    ) -> Iterator[tuple[Tensor, Tensor]]: ...

    @abstractmethod
    def advance(self, positions: int) -> tuple[Tensor, Tensor, int]: ...

    @abstractmethod
    def room_for(self, positions: int) -> Storage: ...

    @property
    @abstractmethod
    def has_storage(self) -> bool: ...

    @abstractmethod
    def has_room_for(self, positions: int) -> bool: ...

    @abstractmethod
    def forget_scratch(self) -> None: ...

    @property
    @abstractmethod
    def growing(self) -> SummaryLayer:
        """The part that new positions go to."""

    @abstractmethod
    def addresses(self) -> list[int]: ...

    @property
    @abstractmethod
    def stored(self) -> list[Tensor]: ...

    @property
    @abstractmethod
    def allocated_bytes(self) -> int: ...

    @abstractmethod
    def reserve(self, positions: int) -> None: ...

    @abstractmethod
    def make_room(self, positions: int) -> None: ...

    @abstractmethod
    def fork(self) -> WindowLayer: ...

    def first_row(self) -> tuple[Tensor, Tensor] | None:
        """Keys and values [N, M, D] of the first row; None where nothing is stored."""
        keys, values = self.keys, self.values
        return None if keys is None or values is None else (keys[0], values[0])


class SummaryLayer(WindowLayer):
    """Cache of one decoder layer. `length` positions are stored; anything after them is scratch."""

    def __init__(self, reserved: int = 0):
        super().__init__(reserved)
        self._held: Storage | None = None
        self.length = 0
        self._extent = 0  # positions in use, scratch included: other holders must not overwrite them

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
        """Yield for each window the keys and values [B, N, M + t, D] that its queries may see; iterate to the end.

        A window's own keys and values are valid only until the next window is requested: then its beacons replace
        them.

        Args:
            key_states, value_states: [B, N, T, D] of all windows, one after the other, keys rotated to their positions.
            beacons: keys (rotated to their final positions) and values [B, N, b, D] of all windows' beacons.
            lengths: positions of each window, and the beacons among them.
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = left = 0
        for rows, number in lengths:
            keys, values = self._write(*(states[:, :, start : start + rows] for states in (key_states, value_states)))
            end = self.length + rows
            yield keys[:, :, :end], values[:, :, :end]
            self._write(*(kind[:, :, left : left + number] for kind in beacons))
            self.length += number
            start, left = start + rows, left + number
        self._extent = self.length

    def advance(self, positions: int) -> tuple[Tensor, Tensor, int]:
        """Count `positions` more positions as stored, for a kernel that writes them itself.

        Returns:
            Keys and values [B, N, capacity, D] of the storage, and the first of the new positions in them.
        """
        start = self.length
        storage = self.room_for(positions)
        self.length += positions
        return storage.keys, storage.values, start

    def _write(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write keys and values after `length`; returns the tensors that hold all positions."""
        start, end = self.length, self.length + keys.shape[2]
        storage = self.room_for(keys.shape[2])
        storage.keys[:, :, start:end] = keys
        storage.values[:, :, start:end] = values
        return storage.keys, storage.values

    def room_for(self, positions: int) -> Storage:
        """Storage with room for `positions` more after `length`; they are marked as in use, but not counted yet."""
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
        self._drop_storage()
        self._held = Storage(keys, values)
        self._storage.holders.add(self)
        self._extent = self.length
        self.is_initialized = True

    def _drop_storage(self) -> None:
        if self._held is not None:
            self._held.holders.discard(self)
        self._held = None

    @property
    def _storage(self) -> Storage:
        assert self._held is not None, "nothing has been stored in this layer yet"
        return self._held

    @property
    def has_storage(self) -> bool:
        return self._held is not None

    def has_room_for(self, positions: int) -> bool:
        """Whether `positions` more can be written after `length` without a new storage."""
        return self.length + positions <= self._storage.keys.shape[2] and not self._is_shared_past_length()

    def forget_scratch(self) -> None:
        """Mark everything after `length` as unused."""
        self._extent = self.length

    def _is_shared_past_length(self) -> bool:
        """Whether another holder uses positions after `length`."""
        return any(holder is not self and holder._extent > self.length for holder in self._storage.holders)

    def addresses(self) -> list[int]:
        """Addresses by which kernels find the storage: see `ADDRESSES` in `videoxl/kernels/decode.py`."""
        storage = self._storage
        return [storage.keys.data_ptr(), storage.values.data_ptr(), storage.keys.shape[2], 0, 0, 0]

    @property
    def stored(self) -> list[Tensor]:
        """The stored keys and values, without spare room; empty if there are none yet."""
        return [] if self._held is None else list(self.content)

    @property
    def allocated_bytes(self) -> int:
        """Bytes of the storage, spare room included."""
        held = self._held
        return 0 if held is None else sum(part.numel() * part.element_size() for part in (held.keys, held.values))

    @property
    def growing(self) -> SummaryLayer:
        return self

    @property
    def is_shared(self) -> bool:
        """Whether other layers hold the same storage."""
        return self._held is not None and len(self._storage.holders) > 1

    def reserve(self, positions: int) -> None:
        """Give the next storage that is allocated room for at least `positions` positions in all."""
        self.reserved = max(self.reserved, positions)

    def make_room(self, positions: int) -> None:
        """Ensure storage for `positions` more positions, and for text after them that forks can then write in place."""
        needed = self.length + positions + _GROWTH_QUANTUM
        if self.is_initialized and needed > self._storage.keys.shape[2]:
            self._reallocate(needed)

    def fork(self) -> SummaryLayer:
        """Another layer with the same content; storage is shared until both write."""
        other = SummaryLayer(self.reserved)
        other.length = other._extent = self.length
        other.is_initialized = self.is_initialized
        if self._held is not None:
            other._held = self._held
            with self._storage.lock:
                self._storage.holders.add(other)
        return other

    def replace(self, keys: Tensor, values: Tensor) -> None:
        """Replace the whole content by a copy of [B, N, M, D] tensors."""
        self.length = keys.shape[2]
        self._own(*(_resized(new, self.length, self.length) for new in (keys, values)))

    def adopt(self, keys: Tensor, values: Tensor) -> None:
        """Replace the whole content by [B, N, M, D] tensors of a file: themselves on a GPU, a copy on the CPU, where
        they are views of the file, which others may overwrite."""
        if keys.device.type == "cpu":
            self.replace(keys, values)
            return
        self.length = keys.shape[2]
        self._own(keys, values)

    # -- transformers' cache protocol ----------------------------------------------------------------------------

    @property
    def content(self) -> tuple[Tensor, Tensor]:
        """Keys and values [B, N, M, D], views of the storage, which must exist."""
        return self._storage.keys[:, :, : self.length], self._storage.values[:, :, : self.length]

    @property
    def keys(self) -> Tensor | None:  # type: ignore[override]  # read-only here
        return self.content[0] if self.has_storage else None

    @property
    def values(self) -> Tensor | None:  # type: ignore[override]
        return self.content[1] if self.has_storage else None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self._own(*(_resized(new, 0, 0) for new in (key_states, value_states)))

    def get_seq_length(self) -> int:
        return self.length

    def crop(self, tokens_to_remove: int) -> None:
        self.length -= abs(tokens_to_remove)
        self._extent = self.length

    def reset(self) -> None:
        self._drop_storage()
        self.length = self._extent = 0
        self.is_initialized = False

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.is_initialized:
            self.replace(*(part.repeat_interleave(repeats, dim=0) for part in self.content))

    def batch_select_indices(self, indices: Tensor) -> None:
        if not self.is_initialized:
            return
        keys, values = self.content
        indices = indices.to(keys.device)
        chosen = keys.index_select(0, indices), values.index_select(0, indices)
        if len(indices) != len(keys) or self.is_shared:
            self.replace(*chosen)
            return
        keys.copy_(chosen[0])  # beams are reordered at every token: keep the spare room
        values.copy_(chosen[1])


def _resized(tensor: Tensor, length: int, capacity: int) -> Tensor:
    """A new [B, N, capacity, D] tensor that starts with the first `length` positions of `tensor`."""
    batch, heads, _, dim = tensor.shape
    # No inference tensor, even in inference mode: a memory created there may be asked outside of it.
    with torch.inference_mode(False), torch.no_grad():
        resized = torch.empty(batch, heads, capacity, dim, dtype=tensor.dtype, device=tensor.device)
    resized[:, :, :length] = tensor[:, :, :length]
    return resized
