"""Video decoders behind one small interface: chosen frames of an indexed file, one after the other.

A reader yields (index, frame) for ascending frame numbers and leaves out frames that cannot be decoded. Free of torch
(but for torchcodec), since it also runs in the decoder process.

Shape letters: H height, W width of a frame.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence

import av
import numpy as np

from videoxl.errors import MissingDependencyError, VideoError
from videoxl.video_index import VideoIndex, decode_frames, open_container

Frames = Iterator[tuple[int, np.ndarray]]


def read_frames(index: VideoIndex, wanted: Sequence[int], backend: str, scaler_side: int | None = None) -> Frames:
    """Frames of a file as they are shown.

    Args:
        wanted: ascending frame numbers.
        backend: `pyav`, `decord` or `torchcodec`.
        scaler_side: None for full frames; else (PyAV only) the decoder's own scaler brings the shorter side to this
            together with colour conversion: faster than the exact resize, and a little different.

    Yields:
        (frame number, uint8 [H, W, 3]).
    """
    if backend not in BACKENDS:
        raise VideoError(f"video backend {backend!r} is not known; use {', '.join(BACKENDS)}")
    if scaler_side is not None and backend != "pyav":
        raise VideoError(f"the decoder's own scaler works with backend 'pyav', not with {backend!r}")
    if backend == "pyav":
        return _pyav_frames(index, wanted, scaler_side)
    return BACKENDS[backend](index, wanted)


def _pyav_frames(index: VideoIndex, wanted: Sequence[int], scaler_side: int | None = None) -> Frames:
    """FFmpeg through PyAV: decode on, or seek where a keyframe lies between here and the next wanted frame."""
    if not index.timed:
        yield from _counted_frames(index, wanted, scaler_side)
        return
    times = frozenset(index.pts[wanted].tolist())
    container, decoded, position, held = None, iter(()), None, None
    try:
        for number in wanted:
            pts = int(index.pts[number])
            keyframe = int(index.keyframes[max(np.searchsorted(index.keyframes, pts, side="right") - 1, 0)])
            if position is None or keyframe > position:
                if container is None:
                    container = open_container(index.info.path)
                    container.streams.video[0].thread_type = "AUTO"
                decoded, held = _decode_from(container, index, keyframe, pts, times), None
            # A frame behind the wanted one (which then cannot be decoded) is held: it may be the next one wanted.
            while held is None or held.pts < pts:
                held = next(decoded, None)
                if held is None:
                    break
                if held.pts is None:  # no time, no place: it cannot be asked for
                    held = None
                    continue
                position = held.pts
            if held is not None and held.pts == pts:
                yield number, _to_array(held, index.info.rotation, scaler_side)
    finally:
        if container is not None:
            container.close()


def _counted_frames(index: VideoIndex, wanted: Sequence[int], scaler_side: int | None) -> Frames:
    """Frames of a file without times, by counting from its start."""
    asked = set(wanted)
    with open_container(index.info.path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        for number, frame in enumerate(decode_frames(container, stream)):
            if number in asked:
                yield number, _to_array(frame, index.info.rotation, scaler_side)


def _decode_from(
    container, index: VideoIndex, keyframe: int, pts: int, wanted: Collection[int]
) -> Iterator[av.VideoFrame]:
    """Seek to a keyframe and decode what is `wanted`; where the seek lands behind `pts`, go back further."""
    stream = container.streams.video[0]
    step = max(int(1 / stream.time_base), 1)  # one second in the stream's unit
    target, first, frames = keyframe, None, iter(())
    while first is None or first.pts > pts:
        try:
            container.seek(target, stream=stream, backward=True)
        except av.error.FFmpegError as error:
            raise VideoError(
                f"{index.info.path}: seeking to {target * stream.time_base:.1f} s failed: {error}"
            ) from error
        frames = decode_frames(container, stream, wanted)
        first = next((frame for frame in frames if frame.pts is not None), None)
        if target < index.pts[0]:
            break
        target, step = target - step, step * 2
    if first is not None:
        yield first
        yield from frames


def _to_array(frame: av.VideoFrame, rotation: int, scaler_side: int | None) -> np.ndarray:
    if scaler_side is not None:
        scale = scaler_side / min(frame.width, frame.height)
        width, height = (max(int(edge * scale), scaler_side) for edge in (frame.width, frame.height))
        frame = frame.reformat(width=width, height=height, format="rgb24", interpolation="BICUBIC")
    array = frame.to_ndarray(format="rgb24")
    return np.ascontiguousarray(np.rot90(array, rotation // 90)) if rotation else array


def _decord_frames(index: VideoIndex, wanted: Sequence[int]) -> Frames:
    """decord, for users who have it: unmaintained, and it may hang on damaged files (then use a timeout)."""
    try:
        from decord import DECORDError, VideoReader, cpu
    except ImportError as error:
        raise MissingDependencyError("backend 'decord' needs decord: pip install decord") from error
    try:
        reader = VideoReader(index.info.path, ctx=cpu(0))
        _check_length("decord", len(reader), index)
        for number in wanted:
            yield number, reader[int(number)].asnumpy()
    except (DECORDError, RuntimeError) as error:
        raise VideoError(f"decord cannot read {index.info.path}: {str(error).splitlines()[0]}") from error


def _torchcodec_frames(index: VideoIndex, wanted: Sequence[int]) -> Frames:
    """torchcodec; needs FFmpeg's shared libraries on the system."""
    try:
        from torchcodec.decoders import VideoDecoder
    except (ImportError, RuntimeError, OSError) as error:
        raise MissingDependencyError(
            f"backend 'torchcodec' needs torchcodec and FFmpeg's shared libraries: {str(error).splitlines()[0]}"
        ) from error
    try:
        decoder = VideoDecoder(index.info.path, dimension_order="NHWC", seek_mode="exact")
        _check_length("torchcodec", len(decoder), index)
        for number in wanted:
            yield number, decoder[int(number)].numpy()
    except (RuntimeError, ValueError) as error:
        raise VideoError(f"torchcodec cannot read {index.info.path}: {str(error).splitlines()[0]}") from error


def _check_length(backend: str, length: int, index: VideoIndex) -> None:
    if length != index.info.num_frames:
        raise VideoError(
            f"{backend} finds {length} frames in {index.info.path}, its packets are {index.info.num_frames}: frame "
            "numbers would not agree; use backend 'pyav'"
        )


BACKENDS: dict[str, Callable[..., Frames]] = {
    "pyav": _pyav_frames,
    "decord": _decord_frames,
    "torchcodec": _torchcodec_frames,
}
