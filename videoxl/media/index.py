"""The content of a video file, read from its packets: frame times, keyframes, size, rotation, damage.

Containers lie about frame counts or do not give them (Matroska, a stream that was cut), so the packets are read once;
only the first frame is decoded. Free of torch, since it also runs in the decoder process.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import av
import numpy as np

from videoxl.errors import VideoError

# HEVC marks unreferenced frames only within a temporal layer, VP9 not at all; AV1's decoder reads the setting once.
SAYS_WHAT_IS_REFERRED_TO = ("h264", "mpeg1video", "mpeg2video", "mpeg4")


@dataclass
class VideoInfo:
    """The content of a file; n is its number of frames.

    Attributes:
        timestamps: [n] float64, seconds from the first frame, ascending.
        width, height: pixels of a frame as it is shown, rotation applied.
        fps: average frames a second.
        rotation: degrees, counterclockwise, by which decoded frames are turned to be shown.
        damage: a sentence if only a part of the file can be used; else None.
    """

    path: str
    timestamps: np.ndarray = field(repr=False)
    width: int
    height: int
    fps: float
    codec: str
    rotation: int = 0
    damage: str | None = None

    @property
    def num_frames(self) -> int:
        return len(self.timestamps)

    @property
    def duration(self) -> float:
        """Seconds from the first frame's start to the last frame's end."""
        return float(self.timestamps[-1]) + (1 / self.fps if self.fps else 0.0)


@dataclass
class VideoIndex:
    """`info`, and the times of all frames and of keyframes in the stream's time base (int64, ascending).

    `timed` is false if the file gives no times: then `pts` are frame numbers, counted from the start.
    """

    info: VideoInfo
    timed: bool
    pts: np.ndarray
    keyframes: np.ndarray


def index_video(path: str) -> VideoIndex:
    """Read a file's packets.

    Raises:
        VideoError: no such file, a folder, not a video, no video stream, no frame; the message says which.
    """
    if not Path(path).exists():
        raise VideoError(f"no such video: {path}")
    if Path(path).is_dir():
        raise VideoError(f"{path} is a folder; give a video file")
    with open_container(path) as container:
        stream = container.streams.video[0]
        pts, keyframes, end, broken = _read_packets(container, stream)
        if pts is not None and not pts:
            raise VideoError(f"{path} holds no video frames")
        damage = _damage(container, stream, len(set(pts)), end, broken) if pts else broken
        base, rate = float(stream.time_base), float(stream.average_rate or 0)
        codec = stream.codec_context.name
    with open_container(path) as container:  # opened again: a stream read to its end may not seek back
        first = next(decode_frames(container, container.streams.video[0]), None)
    if first is None:
        raise VideoError(f"{path}: not one frame can be decoded ({codec})")
    timed = pts is not None
    if (
        pts is None
    ):  # packets without presentation times (AVI, a raw stream): frames come in order, at the stream's rate
        with open_container(path) as container:
            stream = container.streams.video[0]
            pts = list(range(sum(1 for _ in decode_frames(container, stream))))
            rate = rate or float(stream.guessed_rate or 25)
        base, keyframes = 1 / (rate or 25.0), pts[:1]
    order = np.unique(np.asarray(pts, dtype=np.int64))
    timestamps = (order - order[0]) * base
    if not rate and len(order) > 1:
        rate = (len(order) - 1) / float(timestamps[-1])
    rotation = int(getattr(first, "rotation", 0)) % 360
    height, width = (first.width, first.height) if rotation % 180 else (first.height, first.width)
    info = VideoInfo(path, timestamps, width, height, rate, codec, rotation, damage)
    return VideoIndex(info, timed, order, np.unique(np.asarray(keyframes or pts[:1], dtype=np.int64)))


def open_container(path: str):
    """A PyAV container with at least one video stream; raises `VideoError` that says what is wrong."""
    try:
        container = av.open(path)
    except av.error.FFmpegError as error:
        raise VideoError(
            f"{path} cannot be opened as a video: {error.strerror or error} (not a video, or its index is missing "
            "because the file was cut)"
        ) from error
    except UnicodeDecodeError as error:
        raise VideoError(f"{path} cannot be opened as a video: its metadata is not readable text") from error
    if not container.streams.video:
        kinds = sorted({str(stream.type) for stream in container.streams}) or ["nothing"]
        container.close()
        raise VideoError(f"{path} has no video stream (it holds {', '.join(kinds)})")
    return container


def decode_frames(container, stream, wanted: Collection[int] | None = None) -> Iterator[av.VideoFrame]:
    """Frames in the order they are shown; packets that do not decode are skipped.

    Args:
        wanted: times of frames that must be yielded. Where the codec marks them, other frames that none refers to are
            skipped: half the work in many files, and in an undamaged one the other frames stay bit-identical.
    """
    packets = container.demux(stream)
    says = stream.codec_context.name in SAYS_WHAT_IS_REFERRED_TO
    kept, follows = wanted if says else None, False
    while True:
        try:
            packet = next(packets, None)
            if packet is None:
                return
            if kept is not None:
                needed = packet.pts is None or packet.pts in kept
                # The packet after a wanted one may be its second field.
                stream.codec_context.skip_frame = "DEFAULT" if needed or follows else "NONREF"
                follows = needed
            for frame in packet.decode():
                if frame.pts is None:
                    frame.pts = frame.dts
                if not frame.is_corrupt:
                    yield frame
        except av.error.EOFError:
            return
        except av.error.FFmpegError:
            continue


def _read_packets(container, stream) -> tuple[list[int] | None, list[int], float, str | None]:
    """Frame times (None if packets have none), keyframe times, the end of all streams in seconds from the file's
    start, and the error that stopped reading, if any."""
    pts, keyframes, end, broken, complete = [], [], 0.0, None, True
    start = (container.start_time or 0) / av.time_base
    try:
        for packet in container.demux():
            if packet.size == 0:
                continue
            time, shown = packet.pts, packet.stream.index == stream.index and not packet.is_discard
            if time is None:
                complete = complete and not shown
                continue
            end = max(end, float((time + (packet.duration or 0)) * packet.time_base) - start)
            if shown:
                pts.append(time)
                if packet.is_keyframe:
                    keyframes.append(time)
    except av.error.FFmpegError as error:
        broken = error.strerror or str(error)
    # AVI stores no presentation times: FFmpeg guesses some, wrong ones where frames are reordered.
    complete = complete and container.format.name != "avi"
    return pts if complete else None, keyframes, end, broken


def _damage(container, stream, num_frames: int, end: float, broken: str | None) -> str | None:
    """One sentence if the file declares more than can be read, or reading stopped early; else None."""
    declared = float(container.duration / av.time_base) if container.duration else 0.0
    lost = stream.frames - num_frames if stream.frames else 0
    # An edit list hides frames without loss; then nothing is missing in time.
    if lost > 0 and declared - end > 0.5 * lost / float(stream.average_rate or 25):
        return f"only {num_frames} of {stream.frames} frames ({end:.1f} of {declared:.1f} s) can be read: cut short"
    if declared - end > max(1.0, 0.02 * declared):
        return f"only {end:.1f} of {declared:.1f} s can be read: cut short"
    return f"reading stopped after {num_frames} frames ({end:.1f} s): {broken}" if broken else None
