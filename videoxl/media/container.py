"""Opening a file with FFmpeg, safely: local files only, no playlists, a limit on pixels, the stream that is the film.

Free of torch, since it also runs in the decoder processes.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, TypeVar

import av
from av.stream import Disposition

from videoxl.errors import VideoError
from videoxl.media.resize import MAX_PIXELS

T = TypeVar("T", bound=Any)  # packets or frames

# Demuxers that open other files or devices than the one that is named.
_REFERENCES = {
    "applehttp", "avisynth", "concat", "dash", "dshow", "fbdev", "gdigrab", "hls", "image2", "image2pipe", "imf",
    "jack", "kmsgrab", "lavfi", "libcdio", "pulse", "rtp", "rtsp", "sap", "sdp", "sndio", "tedcaptions", "v4l2",
    "vapoursynth", "video4linux2", "x11grab", "xcbgrab",
}  # fmt: skip
_PLAYLISTS = ((b"#EXTM3U", "an HLS playlist"), (b"ffconcat", "a concat list"), (b"<MPD", "a DASH manifest"))

_MOST_MISSES = 1_000_000

# HEVC says it for pictures of one temporal layer only, VP9 not at all; AV1's decoder takes one setting for good.
SAYS_WHAT_IS_REFERRED_TO = ("h264", "mpeg1video", "mpeg2video", "mpeg4")


def check_file(path: str | Path) -> None:
    """Raise `VideoError` unless `path` is a regular file that can be read."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError as error:
        raise VideoError(f"no such video: {path}") from error
    except (OSError, ValueError) as error:  # a loop of links, a name that is too long, a zero byte
        raise VideoError(f"{path} cannot be opened: {error}") from error
    if stat.S_ISDIR(mode):
        raise VideoError(f"{path} is a folder; give a video file")
    if not stat.S_ISREG(mode):
        raise VideoError(f"{path} is a pipe or a device; save the video to a file first")
    if not os.access(path, os.R_OK):
        raise VideoError(f"{path} cannot be read: permission denied")


def open_container(path: str | Path):
    """A PyAV container of a local file; raises `VideoError` that says what is wrong."""
    check_file(path)
    _refuse_playlists(path)
    allowed = {name for name in av.formats_available if not _REFERENCES & set(name.split(","))}
    options = {"protocol_whitelist": "file", "format_whitelist": ",".join(sorted(allowed))}
    try:
        # For the container alone: as options of streams too, PyAV 15 reads past their array where streams appear late.
        return av.open(f"file:{path}", container_options=options)
    except UnicodeError as error:
        raise VideoError(f"{path} cannot be opened as a video: its metadata or name is not readable text") from error
    except (av.error.FFmpegError, ValueError, OSError) as error:
        reason = getattr(error, "strerror", None) or error
        raise VideoError(
            f"{path} cannot be opened as a video: {reason} (not a video, or its index is missing because the file "
            "was cut)"
        ) from error


def _refuse_playlists(path: str | Path) -> None:
    with open(path, "rb") as file:
        head = file.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n")
    for mark, kind in _PLAYLISTS:
        if head.startswith(mark) or (mark == b"<MPD" and head.startswith(b"<?xml") and mark in head):
            raise VideoError(f"{path} is {kind}, which names other files; give the video file itself")


def pick_stream(container, path: str | Path):
    """The stream that is the film: no cover picture; of several the default one, else the one with most pixels.

    Raises:
        VideoError: no video stream, a codec that FFmpeg does not know, or frames that are too large.
    """
    films = [stream for stream in container.streams.video if not _is_cover(stream)]
    if not films:
        kinds = sorted({str(stream.type) for stream in container.streams} - {"video"}) or ["nothing"]
        cover = " and a cover picture" if container.streams.video else ""
        raise VideoError(f"{path} has no video stream (it holds {', '.join(kinds)}{cover})")
    known = [stream for stream in films if stream.codec_context is not None]
    if not known:
        raise VideoError(f"{path}: no decoder for its video codec; convert it, for example to H.264")
    defaults = [stream for stream in known if stream.disposition & Disposition.default]
    stream = max(defaults or known, key=lambda each: each.width * each.height)
    if stream.width * stream.height > MAX_PIXELS:
        raise VideoError(
            f"{path} has frames of {stream.width} x {stream.height} pixels; at most {MAX_PIXELS:,} are decoded. "
            "Scale it down first"
        )
    stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
    # One thread: with frame threads a damaged file gives other frames from run to run.
    stream.codec_context.thread_count = 1
    return stream


def _is_cover(stream) -> bool:
    return bool(stream.disposition & (Disposition.attached_pic | Disposition.timed_thumbnails))


def codec_name(stream) -> str:
    """The codec, not the library that decodes it."""
    codec = stream.codec_context.codec
    name = getattr(codec, "canonical_name", None) or stream.codec_context.name
    return {"libdav1d": "av1", "libaom-av1": "av1", "libvpx-vp9": "vp9", "libvpx": "vp8"}.get(name, name)


def read_packets(container, *streams) -> Iterator[av.Packet]:
    """Packets in file order, also past those of a stream that appears late, where PyAV stops."""
    misses = 0
    while misses < _MOST_MISSES:
        try:
            yield from container.demux(*streams)
            return
        except IndexError:
            misses += 1


def items_from(
    container, stream, keyframe: int, latest: int, read: Callable[[], Iterator[T]], begins: Callable[[T], bool]
) -> Iterator[T]:
    """Packets or frames from a keyframe on; where a seek lands after `latest`, from further back.

    Args:
        read: starts reading where the container stands. begins: whether an item can be the first one.

    Raises what FFmpeg raises for a seek.
    """
    start = stream.start_time or 0
    target, step = keyframe, max(int(1 / stream.time_base), 1)  # one second in the stream's unit
    while True:
        container.seek(target, stream=stream, backward=True)
        items = read()
        first = next((each for each in items if each.pts is not None and begins(each)), None)
        if (first is not None and first.pts <= latest) or target < start:
            break
        target, step = target - step, step * 2
    if first is not None:
        yield first
        yield from items


def decode_frames(container, stream, wanted: Collection[int] | None = None) -> Iterator[av.VideoFrame]:
    """Frames in the order in which they are shown; packets that do not decode are passed over.

    Args:
        wanted: times of frames that must be among them. Where the codec says so, others that no frame refers to are
            left out: half of the work in many files, and of an undamaged one not a bit of the rest changes.
    """
    packets = read_packets(container, stream)
    kept = wanted if stream.codec_context.name in SAYS_WHAT_IS_REFERRED_TO else None
    follows = False
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
