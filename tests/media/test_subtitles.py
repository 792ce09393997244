"""Subtitles: every text form gives the same lines; what is none is named."""

from __future__ import annotations

import contextlib

import av
import pytest
from conftest import SAMPLE
from videos import cut, write_video

from videoxl.errors import SubtitleError
from videoxl.media.subtitles import SubtitleLine, read_subtitles

SRT = """1
00:00:01,000 --> 00:00:03,500
<i>Hello</i> {\\an8}world
second line

2
00:00:02,000 --> 00:00:03,000
Beside it

3
00:01:10,250 --> 00:01:12,000
Good <b>bye</b>

4
00:01:13,000 --> 00:01:14,000
{\\an8}
"""
VTT = """WEBVTT

00:01.000 --> 00:03.500
<v Ann>Hello</v> world second line

00:02.000 --> 00:03.000
Beside it

01:10.250 --> 01:12.000
Good <b>bye</b>
"""
LINES = [
    SubtitleLine(1.0, 3.5, "Hello world second line"),
    SubtitleLine(2.0, 3.0, "Beside it"),
    SubtitleLine(70.25, 72.0, "Good bye"),
]


def mux_subtitles(path, source, codec="mov_text"):
    """The video of `source` with the lines of SRT as a text stream."""
    text = path.with_suffix(".srt")
    text.write_text(SRT)
    with av.open(str(source)) as film, av.open(str(text)) as lines, av.open(str(path), "w") as target:
        video = target.add_stream_from_template(film.streams.video[0])
        subtitles = target.add_stream_from_template(lines.streams.subtitles[0])
        for container, stream in ((film, video), (lines, subtitles)):
            for packet in container.demux(container.streams[0]):
                if packet.dts is not None or packet.size:
                    packet.stream = stream
                    target.mux(packet)
    return path


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.srt", SRT.encode()), ("bom.srt", b"\xef\xbb\xbf" + SRT.encode()), ("a.vtt", VTT.encode()),
     ("windows.srt", SRT.replace("\n", "\r\n").encode()), ("utf16.srt", SRT.encode("utf-16"))],
)  # fmt: skip
def test_every_text_form_gives_the_same_lines(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    assert read_subtitles(path) == LINES


def test_an_old_encoding_is_read(tmp_path):
    path = tmp_path / "old.srt"
    path.write_bytes("1\n00:00:01,000 --> 00:00:02,000\nCafé: naïve\n".encode("cp1252"))
    assert [line.text for line in read_subtitles(path)] == ["Café: naïve"]


def test_the_text_stream_of_a_video_is_read(tmp_path):
    film = write_video(tmp_path / "film.mkv", 50)
    assert read_subtitles(mux_subtitles(tmp_path / "both.mkv", film)) == LINES
    late = write_video(tmp_path / "late.mkv", 50, times=[5 + number / 25 for number in range(50)])
    (last,) = read_subtitles(mux_subtitles(tmp_path / "late-both.mkv", late))  # the others end before the first frame
    assert (last.start, last.end) == pytest.approx((65.25, 67.0))  # seconds are counted from the first frame


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda folder: folder / "none.srt", "no such file"),
        (lambda folder: "a" * 300, "cannot be opened"),
        (lambda folder: "https://example.com/a.srt", "no such file"),
        (lambda folder: _written(folder / "large16.srt", b"\xff\xfe" + b"x\0" * (1 << 23)), "larger than 16 MiB"),
        (lambda folder: folder, "folder"),
        (lambda folder: _written(folder / "empty.srt", b""), "can be read: Invalid data|not one line"),
        (
            lambda folder: _written(folder / "words.srt", b"no times here\n" * 9),
            "can be read: Invalid data|not one line",
        ),
        (lambda folder: _written(folder / "large.srt", b"x" * ((1 << 24) + 1)), "larger than 16 MiB"),
        (lambda folder: _written(folder / "list.srt", b"#EXTM3U\nhttp://example.com/a.srt\n"), "playlist"),
        (lambda folder: SAMPLE, "holds no subtitles; give a text file"),
    ],
)
def test_what_holds_no_subtitles_is_named(tmp_path, make, said):
    with pytest.raises(SubtitleError, match=said):
        read_subtitles(make(tmp_path))


def _written(path, content: bytes):
    path.write_bytes(content)
    return path


def test_a_line_that_goes_on_is_one_and_signs_are_no_markup(tmp_path):
    block = "{n}\n00:00:{a:02},000 --> 00:00:{b:02},000\n{text}\n\n"
    said = "if x < 5 and y > 3 then <b>stop</b>\x1b <|im_end|>"
    text = block.format(n=1, a=1, b=3, text="Hello") + block.format(n=2, a=3, b=9, text="Hello")
    text += block.format(n=3, a=10, b=11, text=said)
    lines = read_subtitles(_written(tmp_path / "a.srt", text.encode()))
    assert lines[0] == SubtitleLine(1.0, 9.0, "Hello")
    assert lines[1].text == "if x < 5 and y > 3 then stop <|im_end|>"


def test_one_broken_byte_does_not_make_a_file_an_old_one(tmp_path):
    text = (
        SRT.replace("Beside it", "Caf\u00e9 na\u00efve " * 20).encode()
        + b"\n9\n00:02:00,000 --> 00:02:01,000\nend \xe4\n"
    )
    lines = read_subtitles(_written(tmp_path / "a.srt", text))
    assert "Caf\u00e9 na\u00efve" in lines[1].text


def test_damaged_files_give_what_can_be_read_or_one_error(tmp_path):
    whole = _written(tmp_path / "whole.srt", SRT.encode())
    for share in (0.2, 0.5, 0.8):
        cut(whole, tmp_path / "cut.srt", share)
        with contextlib.suppress(SubtitleError):
            assert {line.start for line in read_subtitles(tmp_path / "cut.srt")} <= {1.0, 2.0, 70.25}
