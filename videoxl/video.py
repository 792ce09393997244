"""Open a video, choose frames, stream them in bounded chunks with their true times.

Frames go through the model's exact resize as they are decoded, so that only small frames of one chunk are held. With a
`timeout` a child process decodes, and is killed if it makes no progress.

Shape letters: F frames of a chunk, n frames chosen, S side of the model's input.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from videoxl.errors import VideoError
from videoxl.frame_resize import resize_and_crop_frame
from videoxl.read_ahead import ReadAhead

# PyAV is imported when a file is opened: training on frames that are made, not read, can do without it.
if TYPE_CHECKING:
    import torch

    from videoxl.image_processing import VideoXLImageProcessor
    from videoxl.video_index import VideoIndex, VideoInfo

DECODED_AHEAD = 4  # full frames, 25 MB at 1920 x 1080
CHUNK = 40  # frames: four windows of the published geometry, 13 MB at 336 pixels


class VideoWarning(UserWarning):
    """A video can be used, but not all that was asked for."""


@dataclass(frozen=True)
class FrameChoice:
    """Which frames of a video to read.

    Attributes:
        num_frames: that many, uniform over the interval (`np.linspace(0, total - 1, n, dtype=int)`, the published
            rule); all of them where there are fewer.
        fps: that many a second instead: the frames shown at `start + k / fps`.
        by_average_rate: with `fps`, frame `int(k * rate / fps)` instead, k up to the last whole moment, where `rate` is
            the file's average: the rule behind the published VNBench scores.
        max_frames: an upper bound; where `fps` would give more, this many are taken uniformly.
        start, end: interval in seconds; None as `end`: to the end of the file.
    """

    num_frames: int | None = None
    fps: float | None = None
    max_frames: int | None = None
    start: float = 0.0
    end: float | None = None
    by_average_rate: bool = False

    def __post_init__(self):
        if (self.num_frames is None) == (self.fps is None):
            raise VideoError("give either num_frames or fps")
        for name in ("num_frames", "fps", "max_frames"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise VideoError(f"{name} is {value}; it must be above 0")
        if self.start < 0 or (self.end is not None and self.end <= self.start):
            raise VideoError(f"no frame can lie {self._interval()}: the interval is empty")

    def _interval(self) -> str:
        return f"from {self.start:g} s on" if self.end is None else f"from {self.start:g} s to {self.end:g} s"

    def indices(self, info: VideoInfo) -> np.ndarray:
        """Frame numbers, ascending, each once: [n] int64."""
        times = info.timestamps
        inside = np.flatnonzero((times >= self.start) & (times < (np.inf if self.end is None else self.end)))
        if not len(inside):
            raise VideoError(f"{info.path} has no frame {self._interval()}; it is {info.duration:.2f} s long")
        if self.fps is not None and self.by_average_rate:
            numbers = np.arange(max(1, int(len(times) / info.fps * self.fps)))
            chosen = np.intersect1d((numbers * info.fps / self.fps).astype(np.int64), inside)
        elif self.fps is not None:
            last = times[inside[-1]]
            moments = self.start + np.arange(int((last - self.start) * self.fps) + 1) / self.fps
            # The frame on the screen at each moment; half a millisecond forgives rounding of container clocks.
            shown = np.searchsorted(times, moments + 5e-4, side="right") - 1
            chosen = np.unique(np.clip(shown, inside[0], inside[-1]))
        else:
            chosen = _uniform(inside, self.num_frames)
        if self.max_frames is not None and len(chosen) > self.max_frames:
            chosen = _uniform(inside, self.max_frames)
        return chosen


def _uniform(candidates: np.ndarray, number: int) -> np.ndarray:
    if number >= len(candidates):
        return candidates
    return candidates[np.linspace(0, len(candidates) - 1, number, dtype=int)]


@dataclass
class FrameChunk:
    """Some frames on their way to the model.

    Attributes:
        frames: uint8 [F, S, S, 3] on the CPU.
        timestamps: seconds of each frame. indices: its number in the file.
    """

    frames: np.ndarray
    timestamps: list[float]
    indices: list[int]
    image_processor: VideoXLImageProcessor = field(repr=False)

    def pixels(self, device: torch.device, dtype: torch.dtype, part: slice = slice(None)) -> torch.Tensor:
        """Pixel values [F, 3, S, S] of `part`; the 8-bit frames travel, normalisation happens on `device`."""
        import torch

        return self.image_processor.normalize(torch.from_numpy(self.frames[part]).to(device), dtype)


class FrameStream:
    """Chosen frames of one video as `FrameChunk`s; iterating decodes. Close it (or use `with`) to end early.

    Attributes:
        info: what the file holds.
        indices: frame numbers that were chosen, [n].
        notes: sentences about what is not as asked (fewer frames than wanted, damage), for the user to see.
        source: `path` and `fps`, for the record that a `VideoMemory` keeps.
    """

    def __init__(
        self,
        info: VideoInfo,
        indices: np.ndarray,
        frames: Iterator[tuple[int, np.ndarray]],
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
            warnings.warn(note, VideoWarning, stacklevel=2)

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
        return FrameChunk(np.stack([frame for _, frame in held]), times, numbers, self._image_processor)


def probe_video(path: str) -> VideoInfo:
    """What a video file holds; see `index_video` for errors."""
    from videoxl.video_index import index_video

    return index_video(str(path)).info


def open_video(
    path: str,
    image_processor: VideoXLImageProcessor,
    choice: FrameChoice,
    backend: str = "pyav",
    timeout: float | None = None,
    decoder_scaler: bool = False,
    chunk: int = CHUNK,
) -> FrameStream:
    """Choose frames of a video and stream them.

    Args:
        backend: `pyav` (default), `decord` or `torchcodec`.
        timeout: seconds without a frame after which decoding is ended; the work then runs in a process of its own,
            which also decodes ahead while the model computes. None: decode here, while iterating.
        decoder_scaler: let the decoder scale (faster, a little different from the exact resize; PyAV only).
        chunk: frames held at once.

    Raises:
        VideoError, VideoTimeoutError: the message names the file and what is wrong with it.
    """
    path = str(path)
    if timeout is None:
        from videoxl.video_index import index_video

        index = index_video(path)
        indices = choice.indices(index.info)
        frames = decode_resized(index, indices.tolist(), backend, image_processor.side, decoder_scaler)
        info, close = index.info, None
    else:
        from videoxl.video_process import DecoderProcess

        process = DecoderProcess(path, choice, backend, image_processor.side, decoder_scaler, timeout)
        info, indices, frames, close = process.info, process.indices, process.frames(), process.close
    notes = [f"{path}: {info.damage}"] if info.damage else []
    wanted = choice.num_frames or 0
    if choice.max_frames is not None:
        wanted = min(wanted, choice.max_frames)
    if wanted > len(indices):
        notes.append(f"{path} has {len(indices)} frames where {wanted} were asked for; all of them are used")
    for note in notes:
        warnings.warn(note, VideoWarning, stacklevel=2)
    return FrameStream(info, indices, frames, image_processor, chunk, notes, close)


def decode_resized(
    index: VideoIndex, indices: Sequence[int], backend: str, side: int, decoder_scaler: bool
) -> Iterator[tuple[int, np.ndarray]]:
    """(frame number, uint8 [S, S, 3]) of chosen frames; the next ones are decoded while one is resized."""
    from videoxl.video_backends import read_frames

    frames = read_frames(index, indices, backend, side if decoder_scaler else None)
    ahead = ReadAhead(frames, DECODED_AHEAD)
    try:
        for number, frame in ahead:
            yield number, resize_and_crop_frame(frame, side)
    finally:
        ahead.close()
