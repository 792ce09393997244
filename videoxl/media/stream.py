"""Open a video, choose frames, stream them in bounded chunks with their true times.

Frames are resized exactly as the model needs while they are decoded, so only the small frames of one chunk are held.
With a `timeout` a child process decodes, and is killed if it makes no progress.

Shape letters: F frames of a chunk, n frames chosen, S side of the model's input.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from videoxl.errors import VideoError, VideoWarning
from videoxl.media.choice import FrameChoice
from videoxl.media.decoders.base import GPU_BACKENDS, Frames
from videoxl.media.pixels import VideoXLImageProcessor

if TYPE_CHECKING:
    from videoxl.media.info import VideoInfo

_NEVER = 1e7  # seconds
CHUNK = 40  # frames: four windows of the published geometry, 13 MB at 336 pixels


@dataclass
class FrameChunk:
    """Some frames on their way to the model.

    Attributes:
        frames: uint8 [F, S, S, 3]: an array, or a tensor on the GPU where its decoder gave some of them.
        timestamps: seconds of each frame. indices: its number in the file.
    """

    frames: np.ndarray | torch.Tensor
    timestamps: list[float]
    indices: list[int]
    image_processor: VideoXLImageProcessor = field(repr=False)

    def pixels(self, device: torch.device, dtype: torch.dtype, part: slice = slice(None)) -> torch.Tensor:
        """Pixel values [F, 3, S, S] of `part`; frames are copied as 8 bits and normalised on `device`."""
        return self.image_processor.normalize(torch.as_tensor(self.frames[part]).to(device), dtype)


class FrameStream:
    """Chosen frames of one video as `FrameChunk`s; iterating decodes. Close it (or use `with`) to end early.

    Attributes:
        info: the file's `VideoInfo`.
        indices: frame numbers that were chosen, [n] int64.
        notes: sentences for the user about differences from the request (fewer frames, damage).
        source: `path` and `fps`, for the record that a `VideoMemory` keeps.
    """

    def __init__(
        self,
        info: VideoInfo,
        indices: np.ndarray,
        frames: Frames,
        image_processor: VideoXLImageProcessor,
        chunk: int,
        notes: list[str],
        close: Callable[[], None] | None = None,
    ):
        self.info = info
        self.indices = indices
        self.notes = notes
        self.source = {"path": info.path, "fps": info.fps}
        self._frames = frames
        self._image_processor = image_processor
        self._chunk = chunk
        self._close = close or frames.close
        self._started = False
        self._told = 0  # notes that were given as warnings

    @property
    def num_frames(self) -> int:
        """Frames that were chosen; damaged ones among them are left out while reading."""
        return len(self.indices)

    def __iter__(self) -> Iterator[FrameChunk]:
        if self._started:
            raise VideoError(f"the frames of {self.info.path} were read already; open the video again")
        self._started = True
        held: list[tuple[int, np.ndarray]] = []
        delivered = 0
        for item in self._frames:
            held.append(item)
            if len(held) == self._chunk:
                delivered += len(held)
                yield self._pack(held)
                held = []
        if held:
            delivered += len(held)
            yield self._pack(held)
        if delivered < self.num_frames:
            note = f"{self.num_frames - delivered} of {self.num_frames} frames of {self.info.path} cannot be decoded"
            if not delivered:
                raise VideoError(note)
            self.notes.append(note)
        self.tell_notes()

    def tell_notes(self) -> None:
        """Give the notes that are new as warnings."""
        new = self.notes[self._told :]  # a decoder's thread may add one meanwhile
        self._told += len(new)
        for note in new:
            warnings.warn(note, VideoWarning, stacklevel=3)

    def close(self) -> None:
        """End decoding; a decoder process is killed."""
        self._close()

    def __enter__(self) -> FrameStream:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _pack(self, held: list[tuple[int, np.ndarray]]) -> FrameChunk:
        numbers = [number for number, _ in held]
        times = self.info.timestamps[numbers].tolist()
        return FrameChunk(_stacked([frame for _, frame in held]), times, numbers, self._image_processor)


def _stacked(frames: list[np.ndarray | torch.Tensor]) -> np.ndarray | torch.Tensor:
    """[S, S, 3] each -> [F, S, S, 3]; on the GPU if some of them are there."""
    there = [frame for frame in frames if isinstance(frame, torch.Tensor)]
    if not there:
        return np.stack(frames)
    device = there[0].device
    stacked = torch.empty((len(frames), *frames[0].shape), dtype=torch.uint8, device=device)
    for place, frame in enumerate(frames):
        if isinstance(frame, torch.Tensor):
            if frame.is_cuda:  # it was made on its decoder's own stream
                frame.record_stream(torch.cuda.current_stream(device))
            stacked[place] = frame
    here = [place for place, frame in enumerate(frames) if not isinstance(frame, torch.Tensor)]
    if here:
        stacked[here] = torch.from_numpy(np.stack([frames[place] for place in here])).to(device)
    return stacked


def probe_video(path: str) -> VideoInfo:
    """The content of a video file; see `index_video` for errors."""
    from videoxl.media.index_cache import cached_index

    return cached_index(str(path)).info


def open_video(
    path: str,
    image_processor: VideoXLImageProcessor,
    choice: FrameChoice,
    backend: str = "pyav",
    timeout: float | None = None,
    decoder_scaler: bool = False,
    chunk: int = CHUNK,
    workers: int | None = None,
    device: torch.device | None = None,
) -> FrameStream:
    """Choose frames of a video and stream them.

    Args:
        backend: `pyav` (default), `nvdec` (the GPU's decoder; what it cannot decode is the CPU's), `auto` (both, where
            that is faster), `decord`, `torchcodec`, or a decoder that was registered (`media/decoders`).
        timeout: seconds without a frame after which decoding is stopped (twice as many where frames wait for the GPU's
            decoder); with it, decoding runs in processes of its own, which also decode ahead while the model computes.
            None: never, and but for `nvdec` and `auto` in this process, while iterating.
        decoder_scaler: let the decoder scale (faster, a little different from the exact resize; PyAV only).
        chunk: frames held at once.
        workers: most decoder processes (with a timeout, and PyAV); None: one for each core this process may use.
        device: the GPU of `nvdec` and `auto`, on which the frames stay; None: the current one.

    Raises:
        VideoError, VideoTimeoutError: the message names the file and what is wrong with it.
    """
    # PyAV is imported only when a file is opened: training on generated frames works without it.
    from videoxl.media.decode import decode_resized
    from videoxl.media.decoders import check_decoder
    from videoxl.media.index_cache import cached_index
    from videoxl.media.workers import DecoderWorkers

    path = str(path)
    check_decoder(backend, decoder_scaler)
    notes: list[str] = []
    if timeout is None and backend not in GPU_BACKENDS:
        index = cached_index(path)
        indices = choice.indices(index.info)
        side, stored_shape = image_processor.side, choice.stored_shape
        frames = decode_resized(index, indices.tolist(), backend, side, decoder_scaler, stored_shape)
        info, close = index.info, None
    else:
        limit = _NEVER if timeout is None else timeout
        pool = DecoderWorkers(path, choice, backend, image_processor.side, decoder_scaler, limit, workers, device)
        info, indices, frames, close, notes = pool.info, pool.indices, pool.frames(), pool.close, pool.notes
    if info.damage:
        notes.append(f"{path}: {info.damage}")
    wanted = choice.num_frames or 0
    if choice.max_frames is not None:
        wanted = min(wanted, choice.max_frames)
    if choice.sampling == "keyframes":
        notes.append(f"{len(indices)} keyframes of {path} are read, the nearest to the frames that were asked for")
    elif wanted > len(indices):
        notes.append(f"{path} has {len(indices)} frames where {wanted} were asked for; all of them are used")
    stream = FrameStream(info, indices, frames, image_processor, chunk, notes, close)
    stream.tell_notes()
    return stream
