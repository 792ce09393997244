"""FFmpeg through PyAV: decode on, or seek if there is a keyframe between the current and the next wanted frame."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import av
import numpy as np

from videoxl.errors import VideoError
from videoxl.media.decoders.base import Frames, VideoDecoder
from videoxl.media.index import VideoIndex, decode_frames, open_container


class PyAVDecoder(VideoDecoder):
    """The default: reads every container that FFmpeg reads and needs only PyAV."""

    name = "pyav"
    scales = True

    def frames(self, index: VideoIndex, wanted: Sequence[int], side: int | None = None) -> Frames:
        return (_seeked_frames if index.timed else _counted_frames)(index, wanted, side)


def _seeked_frames(index: VideoIndex, wanted: Sequence[int], scaler_side: int | None) -> Frames:
    """Frames of a file with times."""
    times: set[int] = set(index.pts[np.asarray(wanted)].tolist())
    container, position, held = None, None, None
    decoded: Iterator[av.VideoFrame] = iter(())
    try:
        for number in wanted:
            pts = int(index.pts[number])
            keyframe = int(index.keyframes[max(int(np.searchsorted(index.keyframes, pts, side="right")) - 1, 0)])
            if position is None or keyframe > position:
                if container is None:
                    container = open_container(index.info.path)
                    container.streams.video[0].thread_type = "AUTO"
                decoded, held = _decode_from(container, index, keyframe, pts, times), None
            # A frame after the wanted one (which then cannot be decoded) is held: it may be the next one wanted.
            while held is None or held.pts is None or held.pts < pts:
                held = next(decoded, None)
                if held is None:
                    break
                if held.pts is not None:  # one without a time cannot be asked for
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
    """Seek to a keyframe and decode what is `wanted`; where the seek lands after `pts`, go back further."""
    stream = container.streams.video[0]
    step = max(int(1 / stream.time_base), 1)  # one second in the stream's unit
    target = keyframe
    first: av.VideoFrame | None = None
    frames: Iterator[av.VideoFrame] = iter(())
    while first is None or first.pts is None or first.pts > pts:
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
