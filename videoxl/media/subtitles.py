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
from videoxl.media.index_cache import cached_index

MOST_BYTES = 1 << 24  # of a subtitle file; a long film's are a hundredth of it
_PICTURES = ("dvb_subtitle", "dvd_subtitle", "hdmv_pgs_subtitle", "pgssub", "dvbsub", "dvdsub", "xsub")
_MARKUP = re.compile(r"\{[^{}]*\}|</?[A-Za-z][^<>]*>")  # ASS's and HTML's
_SPACE = re.compile(r"(\s|\\[Nnh]|[\x00-\x1f\x7f])+")
_MOST_BROKEN = 0.1  # share of broken bytes in a file that is meant as UTF-8
_UTF16 = (b"\xff\xfe", b"\xfe\xff")


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
    try:
        check_file(path)
    except VideoError as error:
        said = str(error).replace("no such video", "no such file").replace("give a video file", "give one of its files")
        raise SubtitleError(f"no subtitles: {said}") from error
    try:
        with _readable(path) as file, open_container(file) as container:
            return _lines(container, path)
    except SubtitleError:
        raise
    except (VideoError, av.error.FFmpegError, OSError) as error:
        reason = str(error).split(" as a video: ")[-1].split(" (not a video")[0]
        raise SubtitleError(f"{path} holds no subtitles that can be read: {reason}") from error


def _lines(container, path: Path) -> list[SubtitleLine]:
    streams = list(container.streams.subtitles)
    texts = [stream for stream in streams if stream.codec_context and stream.codec_context.name not in _PICTURES]
    if not texts:
        kind = "only subtitles that are stored as pictures, or in an unknown form" if streams else "no subtitles"
        raise SubtitleError(f"{path} holds {kind}; give a text file, such as film.srt")
    stream = next((each for each in texts if each.disposition & each.disposition.default), texts[0])
    # A video's seconds are counted from its first frame.
    begin = cached_index(path).info.first_second if container.streams.video else 0.0
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
        if not text or max(start, end) < 0:  # over before the first frame
            continue
        line = SubtitleLine(max(start, 0.0), max(start, end), text)
        before = found[-1] if found else None
        if before is not None and before.text == text and before.start <= start <= before.end:  # it goes on
            found[-1] = SubtitleLine(before.start, max(before.end, line.end), text)
        else:
            found.append(line)
    if not found:
        raise SubtitleError(f"{path} holds not one line of subtitles")
    return sorted(found, key=lambda line: line.start)


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
    is_text = b"\0" not in head[:4096] or head.startswith(_UTF16)
    if is_text and len(head) > MOST_BYTES:
        raise SubtitleError(f"{path} is larger than {MOST_BYTES >> 20} MiB, which no file of subtitles is")
    if not is_text or head.startswith(_UTF16) or _broken_share(head) == 0:
        yield path
        return
    encoding = "utf-8" if _broken_share(head) < _MOST_BROKEN else "cp1252"
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / f"subtitles{path.suffix}"
        copy.write_text(head.decode(encoding, "replace"), encoding="utf-8")
        yield copy


def _broken_share(text: bytes) -> float:
    """Bytes that are not UTF-8, as a share of those that are not ASCII."""
    beyond = sum(byte > 127 for byte in text)
    return text.decode("utf-8", "replace").count("\ufffd") / beyond if beyond else 0.0
