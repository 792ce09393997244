"""Subtitles: the lines of a file (SubRip, WebVTT, ASS, ...) or of a video's own text stream, with their seconds."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import av

from videoxl.errors import SubtitleError, VideoError
from videoxl.media.container import check_file, open_container, read_packets

MOST_BYTES = 1 << 24  # of a subtitle file; a long film's are a hundredth of it
_PICTURES = ("dvb_subtitle", "dvd_subtitle", "hdmv_pgs_subtitle", "pgssub", "dvbsub", "dvdsub", "xsub")
_MARKUP = re.compile(r"\{[^{}]*\}|<[^<>]*>")  # ASS's and HTML's
_SPACE = re.compile(r"(\s|\\[Nnh])+")


@dataclass(frozen=True)
class SubtitleLine:
    """What is said or shown from `start` to `end`, in seconds of the video."""

    start: float
    end: float
    text: str


def read_subtitles(path: str | Path) -> list[SubtitleLine]:
    """All lines of a subtitle file, or of a video's first text stream (the default one), by time.

    A file that is not in UTF-8 or UTF-16 is read as Windows-1252.

    Raises:
        SubtitleError: no such file, no text in it, or subtitles that are stored as pictures.
    """
    path = Path(path)
    if not path.exists():
        raise SubtitleError(f"no such file of subtitles: {path}")
    try:
        check_file(path)
        with _readable(path) as file, open_container(file) as container:
            return _lines(container, path)
    except SubtitleError:
        raise
    except (VideoError, av.error.FFmpegError, OSError) as error:
        reason = str(error).removeprefix(f"{path} ").split(" (not a video")[0]
        raise SubtitleError(f"{path} holds no subtitles that can be read: {reason}") from error


def _lines(container, path: Path) -> list[SubtitleLine]:
    streams = list(container.streams.subtitles)
    texts = [stream for stream in streams if stream.codec_context and stream.codec_context.name not in _PICTURES]
    if not texts:
        kind = "only subtitles that are stored as pictures" if streams else "no subtitles"
        raise SubtitleError(f"{path} holds {kind}; give a text file, such as film.srt")
    stream = next((each for each in texts if each.disposition & each.disposition.default), texts[0])
    begin = _first_second(container)
    found: list[SubtitleLine] = []
    for packet in read_packets(container, stream):
        if packet.size == 0 or packet.pts is None:
            continue
        start = float(packet.pts * packet.time_base) - begin
        end = start + float((packet.duration or 0) * packet.time_base)
        try:
            text = " ".join(filter(None, (_plain(part) for part in packet.decode())))
        except (av.error.FFmpegError, UnicodeError):
            continue  # one damaged line
        if text and not (found and found[-1].text == text and start <= found[-1].end):
            found.append(SubtitleLine(max(start, 0.0), max(end, start, 0.0), text))
    if not found:
        raise SubtitleError(f"{path} holds not one line of subtitles")
    return sorted(found, key=lambda line: line.start)


def _first_second(container) -> float:
    """The time from which a video's seconds are counted: that of its first frame."""
    for stream in container.streams.video:
        if stream.start_time is not None:
            return float(stream.start_time * stream.time_base)
    return 0.0


def _plain(subtitle) -> str:
    """The text without markup, on one line."""
    # Eight fields come before the text. PyAV 15's own `dialogue` fails on what is not ASCII.
    text = getattr(subtitle, "ass", b"").split(b",", 8)[-1]
    return _SPACE.sub(" ", _MARKUP.sub("", text.decode("utf-8", "replace"))).strip()


@contextmanager
def _readable(path: Path) -> Iterator[Path]:
    """A file that FFmpeg can read: `path`, or a copy in UTF-8 of a text in an older encoding."""
    with open(path, "rb") as file:
        head = file.read(MOST_BYTES + 1)
    is_text = b"\0" not in head[:4096]
    if is_text and len(head) > MOST_BYTES:
        raise SubtitleError(f"{path} is larger than {MOST_BYTES >> 20} MiB, which no file of subtitles is")
    if not is_text or _is_utf8(head):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / f"subtitles{path.suffix}"
        copy.write_text(head.decode("cp1252", "replace"), encoding="utf-8")
        yield copy


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
