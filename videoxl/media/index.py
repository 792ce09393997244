"""Index a video file: the time of every frame, the keyframes, how frames are shown, damage.

Containers lie about frame counts and times, so the packets are read once and a few frames are decoded. Where the
times cannot be used to find frames, the whole file is decoded once, and frames are counted in the decoder's order.
Free of torch, since it also runs in the decoder processes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import av
import numpy as np

from videoxl.errors import VideoError
from videoxl.media.box_check import cut_box
from videoxl.media.colour import is_full_range, matrix_of
from videoxl.media.container import codec_name, decode_frames, open_container, pick_stream, read_packets
from videoxl.media.info import VideoIndex, VideoInfo
from videoxl.media.orientation import frame_orientation
from videoxl.media.timeline import is_seekable, repair_times

_PROBED, _PROBED_LONGER = 24, 100  # frames decoded to see whether they come in the order of their times
_MAY_JUMP = ("mpegts", "mpeg", "vob", "dvd", "svcd")  # formats whose times may be discontinuous


@dataclass
class _Packets:
    """What the packets of the film's stream say, in file order; the end of all streams in seconds."""

    pts: list[int | None] = field(default_factory=list)
    dts: list[int | None] = field(default_factory=list)
    keyframes: list[int] = field(default_factory=list)
    last: tuple[int, int] = (-(1 << 62), 0)  # largest pts and the duration of its packet
    end: float = 0.0
    broken: str | None = None


def index_video(path: str | Path) -> VideoIndex:
    """Read a file's packets.

    Raises:
        VideoError: no such file, not a video, no video stream, not one frame; the message says which.
    """
    path = str(path)
    with open_container(path) as container:
        stream = pick_stream(container, path)
        packets = _read_packets(container, stream)
        if not packets.pts:
            raise VideoError(f"{path} holds no video frames" + (f": {packets.broken}" if packets.broken else ""))
        base, rate, codec = float(stream.time_base), float(stream.average_rate or 0), codec_name(stream)
        guessed = rate or float(stream.guessed_rate or 25)
        may_jump = container.format.name in _MAY_JUMP
        # AVI stores no presentation times: FFmpeg guesses some, wrong ones where frames are reordered.
        reason = "the container stores no times" if container.format.name == "avi" else None
        reason = reason or is_seekable(packets.pts, packets.dts, 1 / base, may_jump)
        times = [time for time in packets.pts if time is not None]
        reorders = bool(stream.codec_context.has_b_frames) or times != sorted(times)
        aspect = float(stream.sample_aspect_ratio or 1) or 1.0
        damage = _damage(container, stream, packets)
    first, shown = _probe(path, packets, reorders and reason is None)
    if first is None:
        raise VideoError(f"{path}: not one frame can be decoded ({codec})")
    if reason is None and shown != sorted(shown):
        reason = "times are not in the order of the frames"
    if reason is None:
        # What comes before both the first keyframe and the first decoded frame refers to frames that are not here.
        begin = min([shown[0], *packets.keyframes[:1]])
        pts = np.array(sorted(time for time in packets.pts if time is not None and time >= begin), dtype=np.int64)
        keyframes = np.array(sorted({time for time in packets.keyframes if time >= begin}), dtype=np.int64)
        lost = len(packets.pts) - len(pts)
        if not len(keyframes) or keyframes[0] > pts[0]:
            keyframes = np.concatenate([pts[:1], keyframes])
        timestamps = (pts - pts[0]) * base
        begin_second = float(pts[0] * base)
        last = packets.last[1] * base if packets.last[1] > 0 else None
    else:
        timestamps = repair_times(_decoded_times(path, base), 1 / guessed, may_jump)
        begin_second = shown[0] * base if shown[0] > -(1 << 62) else 0.0
        pts, keyframes, last, lost = np.arange(len(timestamps)), np.zeros(1, dtype=np.int64), None, 0
    if not rate and len(pts) > 1 and timestamps[-1] > 0:
        rate = (len(pts) - 1) / float(timestamps[-1])
    orientation = frame_orientation(first)
    width, height = round(first.width * aspect), first.height
    info = VideoInfo(
        path=path,
        timestamps=timestamps,
        width=height if orientation.is_sideways else width,
        height=width if orientation.is_sideways else height,
        fps=rate,
        codec=codec,
        rotation=orientation.rotation,
        mirrored=orientation.mirrored,
        pixel_aspect=aspect,
        last_frame=last,
        keyframes=np.searchsorted(pts, keyframes) if reason is None else None,
        stored_width=first.width,
        stored_height=first.height,
        first_second=begin_second,
        pixel_format=first.format.name,
        matrix=matrix_of(first),
        full_range=is_full_range(first),
        interlaced=first.interlaced_frame,
        damage=damage or cut_box(path),
        oddities=_oddities(reason, orientation.mirrored, aspect, lost),
    )
    return VideoIndex(info, reason is None, pts, keyframes)


def _oddities(reason: str | None, mirrored: bool, aspect: float, lost: int) -> tuple[str, ...]:
    found = []
    if reason is not None:
        found.append(f"{reason}: frames are counted from the start, so the file is decoded whole")
    if lost:
        found.append(f"{lost} frame(s) before the first keyframe cannot be decoded")
    if mirrored:
        found.append("frames are mirrored to be shown")
    if aspect != 1:
        found.append(f"pixels are not square ({aspect:.3f}): frames are stretched to be shown")
    return tuple(found)


def _probe(path: str, packets: _Packets, check_order: bool) -> tuple[av.VideoFrame | None, list[int]]:
    """The first frame, and the times of the first ones in the decoder's order.

    A stream that reorders frames, but whose packets are in the order of their times, was written by somebody who did
    not know the order: then more frames are looked at.
    """
    times = [time for time in packets.pts if time is not None]
    number = 1
    if check_order:
        number = _PROBED_LONGER if times == sorted(times) else _PROBED
    # Anew: a stream that was read to its end need not be able to seek back.
    with open_container(path) as container:
        frames = list(islice(_with_sizes(container, path), number))
    return (frames[0][0] if frames else None), [time for _, time in frames]


def _with_sizes(container, path: str):
    first = True
    for frame in decode_frames(container, pick_stream(container, path)):
        yield (frame if first else None), frame.pts if frame.pts is not None else -(1 << 62)
        first = False


def _decoded_times(path: str, base: float) -> list[float | None]:
    """Times of all frames in the decoder's order, in seconds as stored."""
    with open_container(path) as container:
        frames = decode_frames(container, pick_stream(container, path))
        return [None if frame.pts is None else frame.pts * base for frame in frames]


def _read_packets(container, stream) -> _Packets:
    found = _Packets()
    start = (container.start_time or 0) / av.time_base
    packets = read_packets(container)
    while True:
        try:
            packet = next(packets, None)
        except av.error.FFmpegError as error:
            found.broken = error.strerror or str(error)
            return found
        if packet is None:
            return found
        if packet.size == 0:
            continue
        time, duration = packet.pts, packet.duration or 0
        if time is not None:
            found.end = max(found.end, float((time + duration) * packet.time_base) - start)
        if packet.stream.index != stream.index or packet.is_discard:
            continue
        found.pts.append(time)
        found.dts.append(packet.dts)
        if time is not None:
            found.last = max(found.last, (time, duration))
            if packet.is_keyframe:
                found.keyframes.append(time)


def _damage(container, stream, packets: _Packets) -> str | None:
    """A sentence where the file promises more than it gives."""
    declared = float(container.duration / av.time_base) if container.duration else 0.0
    number, end = len(packets.pts), packets.end
    if "matroska" in container.format.name:  # its length counts from zero, not from the first frame
        end += max((container.start_time or 0) / av.time_base, 0)
    lost = stream.frames - number if stream.frames else 0
    # An edit list hides frames without loss; then nothing is missing in time.
    if lost > 0 and declared - end > 0.5 * lost / float(stream.average_rate or 25):
        return f"only {number} of {stream.frames} frames ({end:.1f} of {declared:.1f} s) can be read: cut short"
    if declared - end > max(1.0, 0.02 * declared):
        return f"only {end:.1f} of {declared:.1f} s can be read: cut short"
    return f"reading stopped after {number} frames ({end:.1f} s): {packets.broken}" if packets.broken else None
