"""Video memory: read a video once, ask about it any number of times, extend, save and load it.

Shape letters: R rows, F frames, M stored positions, b beacons, N key/value heads, D head dimension, H hidden size.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from videoxl.cache.fingerprint import model_fingerprint, sampled_fingerprint
from videoxl.cache.memory_file import MemoryState, read_memory, write_memory
from videoxl.cache.shared_prefix import repeat_rows
from videoxl.cache.summary import SummaryCache
from videoxl.compression.base import Compressor, check_registered, get_compressor
from videoxl.compression.plan import RatioChooser
from videoxl.errors import BatchError, MemoryFileError, PlanError, PromptError
from videoxl.model.memory_state import brief, facts_about, layer_devices, restore, spans_of_beacons, state_of
from videoxl.model.prompt import Prompt
from videoxl.model.room import ensure_room
from videoxl.model.runner import SpanReader, check_finite, last_hidden, make_chooser
from videoxl.model.visual import Progress, frame_tokens, iter_pixels
from videoxl.utils.locking import one_at_a_time
from videoxl.utils.timing import StageTimer


class VideoMemory:
    """The summary of a prefix and one video. Made by `model.summarize`.

    Visual tokens that do not fill a window stay pending: a question reads them on a fork, and `extend` continues from
    them. So `extend` gives the same result as reading the whole video at once.

    Attributes:
        cache: the `SummaryCache` of prefix and full windows.
        reader: plan, pending tokens and windows of the video's visual span.
        prefix_ids: ids of the text before the video.
        timestamps: seconds of each frame, NaN where unknown. indices: number of each frame in its file, -1 if unknown.
        source: `path` and `fps` of the file, empty for bare tensors.
        notes: sentences about how it was read, for the user to see.
        rows: number of videos, equally long, that are read side by side; 1 unless it comes from `fork(rows)`.
    """

    def __init__(self, model, cache: SummaryCache, reader: SpanReader, prefix_ids: list[int]):
        self._model = weakref.ref(model)
        self.cache = cache
        self.reader = reader
        self.prefix_ids = prefix_ids
        self.timestamps: list[float] = []
        self.indices: list[int] = []
        self.source: dict[str, str | float] = {}
        self.notes: list[str] = []
        self.rows = 1
        self._fingerprint: dict[str, str] | None = None
        self._torn = False
        self._is_closed = False
        self._closed: tuple[SummaryCache, SpanReader] | None = None
        self._lock = threading.RLock()  # the state; frames are awaited without it
        self._writing = threading.RLock()  # one extend at a time

    @classmethod
    @torch.no_grad()
    def start(
        cls,
        model,
        prefix_ids: Tensor | Sequence[int],
        ratio: int | None = None,
        compressor: str | Compressor | None = None,
    ) -> VideoMemory:
        """A memory that has read its prefix and no frame yet. Raises `PromptError` for a placeholder in it."""
        method = get_compressor(compressor)
        chooser = make_chooser(model.config, None, ratio, compressor=method)
        prefix = torch.as_tensor(prefix_ids, device=model.model.input_device).reshape(1, -1)
        if (prefix < 0).any():
            raise PromptError("prefix_ids holds a placeholder; give only the text before the video")
        cache = SummaryCache(len(model.model.layers))
        if prefix.shape[1]:
            model.model.text_step(model.model.embed_tokens(prefix), cache)
        reader = SpanReader(model.model, cache, chooser, method)
        return cls(model, cache, reader, prefix[0].tolist())

    @property
    def model(self):
        """The model that this memory belongs to."""
        model = self._model()
        if model is None:
            raise MemoryFileError("the model of this memory is gone; load the memory's file with VideoMemory.load")
        return model

    @torch.no_grad()
    def extend(
        self, frames: Tensor | Iterable, progress: Progress | None = None, timer: StageTimer | None = None
    ) -> None:
        """Read more frames; takes the `frames` that `summarize` takes. Host memory holds one chunk at a time.

        Raises:
            MemoryLimitError: the number of frames is known beforehand and does not fit on the GPU.
            MemoryFileError: the memory is closed, or an earlier `extend` was interrupted.
            BatchError: a memory of several videos, or pixels of another shape.
        """
        with self._writing:
            self._extend(frames, progress, timer)

    def _extend(self, frames: Tensor | Iterable, progress: Progress | None, timer: StageTimer | None) -> None:
        self.check_whole()
        if self.rows > 1:
            raise BatchError(f"this memory has {self.rows} videos; extend them together with extend_tokens")
        number = len(frames) if isinstance(frames, Tensor) else getattr(frames, "num_frames", None)
        if number:
            ratio = self.reader.planner.chooser.least()
            ensure_room(self.model, number, ratio, self.num_frames, self.cache, compressor=self.reader.compressor)
        decoder, hidden = self.model.model, None
        stage = timer.stage if timer is not None else lambda name: nullcontext()
        chunks = iter_pixels(frames, decoder.vision_tower)
        while True:
            with stage("decode"):  # the time that the model waits for frames
                pixels, timestamps, indices = next(chunks, (None, [], []))
            if pixels is None:
                break
            with stage("encode"):
                tokens = frame_tokens(self.model, pixels)
            with stage("summarise"):
                hidden = self._read(tokens.unsqueeze(0), timestamps, indices, hidden)
            if progress is not None:
                progress(len(timestamps))
        if hidden is not None:
            check_finite(hidden, self.cache)
        self.source.update(getattr(frames, "source", {}))

    @torch.no_grad()
    def extend_tokens(self, tokens: Tensor, timestamps: Sequence[float] | None = None) -> None:
        """Read frames whose visual tokens are computed already (`frame_tokens`); timestamps in seconds, if known.

        Args:
            tokens: [F, t, H], or [R, F, t, H] for several rows.

        Raises:
            BatchError: the number of rows or of timestamps does not match.
        """
        self.check_whole()
        tokens = tokens if tokens.dim() == 4 else tokens.unsqueeze(0)
        if len(tokens) != self.rows:
            raise BatchError(f"tokens of {len(tokens)} video(s) were given to a memory of {self.rows}")
        number = tokens.shape[1]
        times = [float("nan")] * number if timestamps is None else list(timestamps)
        if len(times) != number:
            raise BatchError(f"{len(times)} timestamps were given for {number} frames")
        with self._writing:
            hidden = self._read(tokens, times, [-1] * number, None)
        if hidden is not None:
            check_finite(hidden, self.cache)

    @one_at_a_time
    def fork(self, rows: int = 1) -> VideoMemory:
        """Another memory of the same frames that grows independently; storage is shared until both write.

        Args:
            rows: number of videos that begin alike and continue with different frames, equally many
                (`extend_tokens`). Their common part is stored once if the attention back end allows it. `row` takes
                one video out, so that it can be asked.

        Raises:
            BatchError: `rows` is not 1 and this memory has several already.
        """
        self.check_whole()
        if rows != 1 and self.rows != 1:
            raise BatchError(f"a memory of {self.rows} videos cannot be forked into rows; take one out with row()")
        self._closed = None  # else a question's positions after the last window would make the fork copy the cache
        cache = self.cache.fork()
        reader = self.reader.fork(cache)
        if rows > 1:
            repeat_rows(cache, rows, self.model.config._attn_implementation)
            if reader.pending is not None:
                reader.pending = reader.pending.expand(rows, -1, -1)
        return self._like(cache, reader, max(rows, self.rows))

    @one_at_a_time
    def row(self, index: int) -> VideoMemory:
        """One video of several, as a memory of its own."""
        self.check_whole()
        cache = self.cache.fork()
        reader = self.reader.fork(cache)
        if self.rows > 1:
            cache.batch_select_indices(torch.tensor([range(self.rows)[index]]))
            if reader.pending is not None:
                reader.pending = reader.pending[index].unsqueeze(0)
        return self._like(cache, reader, 1)

    def __deepcopy__(self, _memo: dict | None = None) -> VideoMemory:
        return self.fork()

    __copy__ = __deepcopy__

    def __reduce__(self):
        raise MemoryFileError("a memory belongs to its model; write it with save, and read it with VideoMemory.load")

    def _like(self, cache: SummaryCache, reader: SpanReader, rows: int) -> VideoMemory:
        other = VideoMemory(self.model, cache, reader, self.prefix_ids)
        other.timestamps, other.indices = list(self.timestamps), list(self.indices)
        other.source, other.notes = dict(self.source), list(self.notes)
        other._fingerprint, other.rows = self._fingerprint, rows
        return other

    @one_at_a_time
    def _read(self, tokens: Tensor, timestamps: list[float], indices: list[int], hidden: Tensor | None):
        """Hand visual tokens [R, F, t, H] to the reader; returns the last hidden state [R, 1, H], or `hidden`."""
        self._closed = None
        self._torn = True  # until plan, cache and timeline are consistent again
        hidden = last_hidden(self.reader.push(tokens.flatten(1, 2)), hidden)
        self.timestamps += timestamps
        self.indices += indices
        self._torn = False
        return hidden

    # -- asking ----------------------------------------------------------------------------------------------------

    def check_prompt(self, model, prompt: Prompt) -> None:
        """Raise `PromptError` unless every row of `prompt` begins with this memory's prefix and a visual span.

        Raises `MemoryFileError` if another model made this memory."""
        self.check_whole()
        if model is not self._model() and model_fingerprint(model) != self.fingerprint:
            raise MemoryFileError(
                f"this memory was made by another model: {self.fingerprint}, not {model_fingerprint(model)}"
            )
        if not self.timestamps:
            raise PromptError("this memory holds no frames yet; call extend first")
        for row in prompt.texts[0].tolist():
            if row != self.prefix_ids:
                raise PromptError(
                    f"the prompt's text before the video has the ids {brief(row)}, the memory's prefix has "
                    f"{brief(self.prefix_ids)}; they must be equal"
                )

    @one_at_a_time
    def snapshot(self) -> VideoMemory:
        """This memory as it is now, to be asked while another thread extends it."""
        self.check_whole()
        if self.rows == 1:
            self._read_pending()
        cache = self.cache.fork()
        other = self._like(cache, self.reader.fork(cache), self.rows)
        other._closed = self._closed
        return other

    @one_at_a_time
    @torch.no_grad()
    def finalize_for_query(self, num_rows: int = 1) -> tuple[SummaryCache, RatioChooser]:
        """A cache for a question, with pending tokens read, and the ratio chooser to continue with after it.

        The content of this memory does not change. Pending tokens are read only for the first question.
        """
        self.check_whole()
        if self.rows > 1:
            raise BatchError(f"this memory has {self.rows} videos; ask one of them, taken out with row()")
        closed, reader = self._read_pending()
        cache = closed.fork()
        if num_rows > 1:
            repeat_rows(cache, num_rows, self.model.config._attn_implementation)
        return cache, reader.planner.fork().chooser

    @torch.no_grad()
    def _read_pending(self) -> tuple[SummaryCache, SpanReader]:
        """Cache and reader after the pending tokens, kept for the next question."""
        if self._closed is None:
            self.cache.make_room(2 * self.num_pending)  # a window's tokens and at most as many beacons
            closed = self.cache.fork()
            reader = self.reader.fork(closed)
            for hidden in reader.close():
                check_finite(hidden, closed)
            self._closed = closed, reader
        return self._closed

    @one_at_a_time
    def close(self) -> None:
        """Release the device memory; this memory cannot be used any more, but its forks can."""
        self._is_closed, self._closed = True, None
        self.cache = SummaryCache(0)
        self.reader.cache, self.reader.pending = self.cache, None

    def __enter__(self) -> VideoMemory:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    @one_at_a_time
    def check_whole(self) -> None:
        """Raise `MemoryFileError` if the memory is closed, or if an `extend` was interrupted while reading."""
        if self._is_closed:
            raise MemoryFileError("this memory is closed; read the video again, or load the memory's file")
        if self._torn:
            raise MemoryFileError(
                "an interrupted extend left this memory between two windows; load it from its file, or summarise again"
            )

    # -- facts -------------------------------------------------------------------------------------------------------

    @property
    def num_frames(self) -> int:
        return len(self.timestamps)

    @property
    def num_visual_tokens(self) -> int:
        """Visual tokens of all frames, pending ones included."""
        return self.reader.planner.position + self.num_pending

    @property
    def num_pending(self) -> int:
        """Number of visual tokens that do not fill a window yet."""
        return 0 if self.reader.pending is None else self.reader.pending.shape[1]

    @property
    def summary_length(self) -> int:
        """Number of positions that a question sees: the stored ones and those that the pending tokens will leave."""
        self.check_whole()
        if not self.num_pending:
            return self.cache.get_query_offset()
        window = self.reader.planner.fork().next_window(self.num_pending)
        return self.cache.get_query_offset() + self.reader.compressor.num_kept(window)

    @property
    def ratios(self) -> list[int]:
        """Compression ratios of the windows, unique and ascending; before the first window, those to draw from."""
        return sorted(set(self.cache.window_ratios)) or list(self.reader.planner.chooser.ratios)

    @property
    def fingerprint(self) -> dict[str, str]:
        if self._fingerprint is None:
            self._fingerprint = model_fingerprint(self.model)
        return self._fingerprint

    @one_at_a_time
    def beacon_spans(self) -> np.ndarray:
        """Time span in seconds of every stored visual position, [b, 2] float64: first and last frame it summarises."""
        return spans_of_beacons(self)

    @one_at_a_time
    def info(self) -> dict:
        """Facts about this memory, as `videoxl info` prints them."""
        self.check_whole()
        return facts_about(self)

    # -- files -------------------------------------------------------------------------------------------------------

    @one_at_a_time
    def save(self, path: str | Path, overwrite: bool = False) -> None:
        """Write this memory to one safetensors file; it appears whole or not at all.

        Raises:
            MemoryFileError: the file exists and `overwrite` is false, or it cannot be written.
            BatchError: a memory of several videos. ConfigError: a compressor that is not registered."""
        self.check_whole()
        if self.rows > 1:
            raise BatchError(f"this memory has {self.rows} videos; save them one by one, taken out with row()")
        check_registered(self.reader.compressor)
        write_memory(self.state(), Path(path), overwrite)

    @one_at_a_time
    def state(self) -> MemoryState:
        """The content of this memory's file, as plain values and tensors."""
        return state_of(self)

    @classmethod
    def from_state(cls, model, state: MemoryState) -> VideoMemory:
        """A memory of `model`, whose fingerprint the state has. Removes the layers from the state.

        Raises `MemoryFileError` for values that do not agree with each other or with the model.
        """
        cache, reader = restore(model, state)
        memory = cls(model, cache, reader, state.prefix_ids)
        memory.timestamps, memory.indices = state.timestamps, state.indices
        memory.source = state.source
        return memory

    @classmethod
    def load(cls, path: str | Path, model, verify: bool = True) -> VideoMemory:
        """Read a memory that `model` (the same weights, dtype and quantisation) made.

        Args:
            verify: compare the file's checksums; False is a little faster, and damage may go unseen.

        Raises `MemoryFileError`: no memory file, a damaged one, or one of another model.
        """

        def own(version: int) -> dict[str, str]:
            return sampled_fingerprint(model) if version == 1 else model_fingerprint(model)

        state = read_memory(Path(path), own, layer_devices(model), verify)
        try:
            return cls.from_state(model, state)
        except (MemoryFileError, PlanError) as error:
            raise MemoryFileError(f"{path} does not fit this model: {error}") from error
