"""FFmpeg through PyAV: decode on, or seek where a keyframe lies between here and the next wanted frame."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import av
import numpy as np

from videoxl.errors import VideoError
from videoxl.media.colour import RgbConverter
from videoxl.media.container import decode_frames, items_from, open_container, pick_stream
from videoxl.media.decoders.base import Frames, VideoDecoder
from videoxl.media.info import VideoIndex
from videoxl.media.orientation import Orientation
from videoxl.media.parts import Part, plan_parts

Shown = Callable[[np.ndarray], np.ndarray]
"""What is done to each frame [H, W, 3] as soon as it is decoded, so that no large ones are held."""


class PyAVDecoder(VideoDecoder):
    """The default: reads every container that FFmpeg reads, without a package beyond PyAV."""

    name = "pyav"
    scales = True

    def frames(self, index: VideoIndex, wanted: Sequence[int], side: int | None = None) -> Frames:
        if not index.timed:
            yield from counted_frames(index, wanted, side)
            return
        with PartReader(index.info.path, index.info.orientation, side) as reader:
            for part in plan_parts(index, wanted):
                yield from reader.read(part)


class PartReader:
    """Decodes parts of one file in any order; frames do not depend on which parts were read before."""

    def __init__(self, path: str, orientation: Orientation, scaler_side: int | None = None, then: Shown | None = None):
        self._path = path
        self._orientation = orientation
        self._scaler_side = scaler_side
        self._then = then
        self._rgb = RgbConverter()
        self._container: Any = None
        self._stream: Any = None
        self._second: PartReader | None = None

    def __enter__(self) -> PartReader:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        if self._container is not None:
            self._container.close()
            self._container = None
        if self._second is not None:
            self._second.close()
            self._second = None

    def read(self, part: Part) -> Iterator[tuple[int, np.ndarray]]:
        """(frame number, uint8 [H, W, 3]) of the frames that can be decoded, ascending."""
        expected = 0
        for place, frame in self._decode(part.pts, part.keyframes):
            yield from self._again(part, expected, place)
            yield part.numbers[place], frame
            expected = place + 1
        yield from self._again(part, expected, len(part.pts))

    def _again(self, part: Part, start: int, stop: int) -> Iterator[tuple[int, np.ndarray]]:
        """Frames that did not come: a file may mark frames as keyframes that are none, so decoding begins further back.

        By a decoder of its own, since the first one may be in the middle of a part.
        """
        if start == stop or not part.earlier:
            return
        if self._second is None:
            self._second = PartReader(self._path, self._orientation, self._scaler_side, self._then)
        found: dict[int, np.ndarray] = {}
        for keyframe in part.earlier:
            missing = [place for place in range(start, stop) if place not in found]
            again = self._second._decode([part.pts[place] for place in missing], [keyframe] * len(missing))
            found |= {missing[place]: frame for place, frame in again}
        yield from ((part.numbers[place], found[place]) for place in sorted(found))

    def _decode(self, pts: Sequence[int], keyframes: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
        """(place in `pts`, frame) for those of `pts` that the decoder gives."""
        wanted = set(pts)
        position: int | None = None
        held: av.VideoFrame | None = None
        decoded: Iterator[av.VideoFrame] = iter(())
        for place, (time, keyframe) in enumerate(zip(pts, keyframes)):
            is_alone = time == keyframe and (place + 1 == len(pts) or keyframes[place + 1] != keyframe)
            if is_alone and (frame := self._decode_keyframe(keyframe)) is not None:
                position, held = None, None
                yield place, self._shown(frame)
                continue
            if position is None or keyframe > position:
                decoded, held = self._decode_from(keyframe, time, wanted), None
            # A frame after the wanted one (which then cannot be decoded) is held: it may be the next one wanted.
            while held is None or held.pts is None or held.pts < time:
                held = next(decoded, None)
                if held is None:
                    break
                if held.pts is not None:  # one without a time cannot be asked for
                    position = held.pts
            if held is not None and held.pts == time:
                yield place, self._shown(held)

    def _decode_keyframe(self, time: int) -> av.VideoFrame | None:
        """A keyframe of which nothing else is wanted, without the frames that the decoder would wait for.

        None where that is not to be had: a packet that holds one of two fields, or a seek that lands elsewhere.
        """
        container, stream = self._opened()
        try:
            container.seek(time, stream=stream, backward=True)
            context = stream.codec_context
            context.skip_frame = "DEFAULT"
            packet = next((packet for packet in container.demux(stream) if packet.size), None)
            if packet is None or packet.pts != time:
                return None
            frames = [*packet.decode(), *context.decode(None)]
            context.flush_buffers()
        except (av.error.FFmpegError, IndexError):
            return None
        frame = frames[0] if len(frames) == 1 else None
        wrong = frame is None or frame.pts != time or frame.is_corrupt or frame.interlaced_frame
        return None if wrong else frame

    def _opened(self) -> tuple[Any, Any]:
        if self._container is None:
            self._container = open_container(self._path)
            self._stream = pick_stream(self._container, self._path)
        return self._container, self._stream

    def _decode_from(self, keyframe: int, time: int, wanted: set[int]) -> Iterator[av.VideoFrame]:
        """Seek to a keyframe and decode what is `wanted`; where the seek lands after `time`, go back further."""
        container, stream = self._opened()

        def read() -> Iterator[av.VideoFrame]:
            return decode_frames(container, stream, wanted)

        try:
            yield from items_from(container, stream, keyframe, time, read, lambda frame: True)
        except av.error.FFmpegError as error:
            where = float(keyframe * stream.time_base)
            raise VideoError(f"{self._path}: seeking to {where:.1f} s failed: {error}") from error

    def _shown(self, frame: av.VideoFrame) -> np.ndarray:
        return _shown(frame, self._rgb, self._orientation, self._scaler_side, self._then)


def counted_frames(
    index: VideoIndex, wanted: Sequence[int], scaler_side: int | None = None, then: Shown | None = None
) -> Frames:
    """Frames of a file whose times cannot be used, by counting from its start."""
    asked, last = set(wanted), max(wanted, default=-1)
    rgb = RgbConverter()
    with open_container(index.info.path) as container:
        stream = pick_stream(container, index.info.path)
        for number, frame in enumerate(decode_frames(container, stream)):
            if number in asked:
                yield number, _shown(frame, rgb, index.info.orientation, scaler_side, then)
            if number >= last:
                return


def _shown(
    frame: av.VideoFrame, rgb: RgbConverter, orientation: Orientation, side: int | None, then: Shown | None
) -> np.ndarray:
    size = None
    if side is not None:
        scale = side / min(frame.width, frame.height)
        size = max(int(frame.width * scale), side), max(int(frame.height * scale), side)
    shown = orientation.apply(rgb(frame, size))
    return shown if then is None else then(shown)
