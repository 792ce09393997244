"""Files that were read wrongly once: each against plain decoding, with its times and pixels."""

from __future__ import annotations

import shutil
import struct
import subprocess
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.stream import Disposition
from conftest import ROOT
from PIL import Image
from videos import cut, numbered_frame, read_number, write_sound, write_video

from videoxl.errors import PictureError, VideoError
from videoxl.media.choice import FrameChoice
from videoxl.media.colour import RgbConverter
from videoxl.media.decoders.pyav import PyAVDecoder
from videoxl.media.index import index_video
from videoxl.media.index_cache import cached_index
from videoxl.media.info import VideoInfo
from videoxl.media.orientation import Orientation, orientation_of
from videoxl.media.pictures import load_picture, pad_to_square
from videoxl.media.pixels import VideoXLImageProcessor
from videoxl.media.resize import resize_and_crop_frame
from videoxl.media.stream import open_video, probe_video
from videoxl.media.timeline import repair_times

SAMPLE = ROOT / "assets" / "sample.mp4"
PROCESSOR = VideoXLImageProcessor()
pytestmark = pytest.mark.filterwarnings("ignore::videoxl.video.VideoWarning")


def decode(path, **kwargs):
    """(frames [n, S, S, 3], times) as they are streamed."""
    chunks = list(open_video(path, PROCESSOR, kwargs.pop("choice", FrameChoice(num_frames=10_000)), **kwargs))
    return np.concatenate([chunk.frames for chunk in chunks]), [time for chunk in chunks for time in chunk.timestamps]


def reference(path) -> np.ndarray:
    """Every frame that PyAV gives from the start, in its order."""
    with av.open(str(path)) as container:
        container.streams.video[0].codec_context.thread_count = 1
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def rewrite_packets(source, target, change, **options):
    """Copy packets into another container; `change(number, packet)` edits each."""
    with av.open(str(source)) as read, av.open(str(target), "w", **options) as written:
        stream = written.add_stream_from_template(read.streams.video[0])
        number = 0
        for packet in read.demux(video=0):
            if packet.size:
                packet.stream = stream
                change(number, packet)
                written.mux(packet)
                number += 1
    return target


# -- times ---------------------------------------------------------------------------------------------------------


def test_a_raw_stream_copied_into_a_container_keeps_every_frame(tmp_path):
    source = write_video(tmp_path / "a.mp4", 60, encoder_options={"bf": "2"})

    def in_file_order(number, packet):
        packet.pts = packet.dts = number * 512
        packet.time_base = Fraction(1, 12800)

    path = rewrite_packets(source, tmp_path / "b.mp4", in_file_order)
    frames, times = decode(path)
    assert [read_number(frame) for frame in frames] == list(range(60))
    assert times == sorted(times) and times[-1] == pytest.approx(59 / 25, abs=0.05)
    assert any("order" in odd for odd in probe_video(path).oddities)
    picked, _ = decode(path, choice=FrameChoice(num_frames=4), timeout=30)
    assert [read_number(frame) for frame in picked] == [0, 19, 39, 59]


@pytest.mark.parametrize("name", ["a.ts", "a.mpg"])
def test_joined_files_go_on_in_file_order(tmp_path, name):
    codec = {"a.ts": "libx264", "a.mpg": "mpeg2video"}[name]
    one = write_video(tmp_path / name, 50, codec=codec)
    joined = tmp_path / f"joined{one.suffix}"
    joined.write_bytes(one.read_bytes() * 2)
    frames, times = decode(joined)
    count = len(decode(one)[0])
    assert [read_number(frame) for frame in frames] == 2 * list(range(50))[:count]
    assert all(after >= before for before, after in zip(times, times[1:]))
    assert probe_video(joined).duration == pytest.approx(2 * probe_video(one).duration, abs=0.1)


def test_times_are_repaired():
    step = 0.04
    in_order = [0.0, 0.04, 0.08, 0.12]
    assert repair_times([1.04, 1.0, 1.12, 1.08], step).tolist() == pytest.approx(in_order)
    assert repair_times([5.0, 5.04, 1.0, 1.04], step).tolist() == pytest.approx(in_order)
    assert repair_times([0.0, 0.5, 0.0, 0.5], 0.02).tolist() == pytest.approx([0.0, 0.5, 0.52, 1.02])
    assert repair_times([0.0, None, 0.08, None], step).tolist() == pytest.approx(in_order)
    assert repair_times([0.0, 100.0], step).tolist() == [0.0, 100.0]
    assert repair_times([0.0, 100.0], step, may_jump=True).tolist() == pytest.approx([0.0, 0.04])
    assert len(repair_times([], step)) == 0


def test_a_late_time_takes_no_memory(tmp_path):
    times = [0, 0.1, 0.2, 2_000_000]
    path = write_video(tmp_path / "late.mkv", 4, times=times)
    assert decode(path, choice=FrameChoice(fps=10_000, max_frames=8))[1] == pytest.approx(times, abs=1e-3)


def info_at(times, last=1.0):
    return VideoInfo("x", np.asarray(times, dtype=np.float64), 4, 4, 1.0, "h264", last_frame=last)


def plainly_at_moments(times, fps, start, end):
    """The rule itself: the frame on the screen at each moment."""
    last = max(t for t in times if t < end)
    moments = start + np.arange(int((max(last, start) - start) * fps) + 1) / fps
    return sorted({max(int(np.searchsorted(times, m + 5e-4, side="right")) - 1, 0) for m in moments if m < end})


@pytest.mark.parametrize("seed", range(20))
def test_frames_at_a_rate_are_those_on_the_screen(seed):
    rng = np.random.default_rng(seed)
    times = np.concatenate([[0], np.cumsum(rng.choice([0.04, 0.04, 0.5, 3.0], 40))])
    fps, start = float(rng.choice([0.3, 1, 2.5, 30])), float(rng.choice([0.0, 0.7, 2.0]))
    chosen = FrameChoice(fps=fps, start=start).indices(info_at(times))
    assert chosen.tolist() == plainly_at_moments(times, fps, start, np.inf)


def test_an_interval_inside_a_frame_shows_that_frame():
    slides = info_at([0, 10, 20, 30], last=11.0)
    assert slides.duration == 41
    assert FrameChoice(num_frames=8, start=12, end=18).indices(slides).tolist() == [1]
    assert FrameChoice(fps=1, start=12, end=25).indices(slides).tolist() == [1, 2]
    assert FrameChoice(num_frames=8, start=40.5).indices(slides).tolist() == [3]
    with pytest.raises(VideoError, match=r"41\.00 s long"):
        FrameChoice(num_frames=8, start=41).indices(slides)


def test_the_last_frame_is_as_long_as_its_packet(tmp_path):
    source = write_video(tmp_path / "a.mkv", 3, times=[0, 10, 20])

    def lasting(number, packet):
        packet.duration = 10_000

    path = rewrite_packets(source, tmp_path / "slides.mkv", lasting)
    assert probe_video(path).duration == pytest.approx(30, abs=0.1)


# -- which stream, and how it is shown --------------------------------------------------------------------------------


def write_streams(path, streams):
    """Streams of numbered frames: (codec, size, first number, disposition) each."""
    with av.open(str(path), "w") as container:
        made = []
        for codec, size, first, disposition in streams:
            stream = container.add_stream(codec, rate=25)
            stream.width, stream.height = size
            stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            stream.disposition = disposition.value  # PyAV 15 takes nothing but a number
            made.append((stream, size, first, codec))
        for stream, size, first, codec in made:
            for number in range(1 if codec == "mjpeg" else 10):
                frame = av.VideoFrame.from_ndarray(numbered_frame(first + number, *size), format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
    return path


@pytest.mark.parametrize(
    ("streams", "first"),
    [
        ([("mjpeg", (320, 240), 7, Disposition.attached_pic), ("libx264", (320, 240), 20, Disposition(0))], 20),
        ([("libx264", (176, 144), 20, Disposition(0)), ("libx264", (320, 240), 40, Disposition(0))], 40),
        ([("libx264", (320, 240), 20, Disposition.default), ("libx264", (640, 480), 40, Disposition(0))], 20),
    ],
    ids=["cover", "larger", "default"],
)
def test_the_stream_that_is_the_film_is_read(tmp_path, streams, first):
    path = write_streams(
        tmp_path / "a.mp4" if first == 20 and streams[0][0] == "mjpeg" else tmp_path / "a.mkv", streams
    )
    frames, _ = decode(path)
    assert len(frames) == 10 and [read_number(frame) for frame in frames] == list(range(first, first + 10))


def test_sound_alone_is_no_video(tmp_path):
    with pytest.raises(VideoError, match=r"has no video stream \(it holds audio\)"):
        probe_video(write_sound(tmp_path / "sound.mp4"))


MATRICES = {
    (-1, 0, 0, 1): lambda f: f[:, ::-1],
    (1, 0, 0, -1): lambda f: f[::-1],
    (-1, 0, 0, -1): lambda f: f[::-1, ::-1],
    (0, 1, -1, 0): lambda f: np.rot90(f, -1),
    (0, -1, 1, 0): lambda f: np.rot90(f, 1),
    (0, 1, 1, 0): lambda f: f.transpose(1, 0, 2),
    (0, -1, -1, 0): lambda f: f[::-1, ::-1].transpose(1, 0, 2),
}


@pytest.mark.parametrize("matrix", MATRICES, ids=str)
def test_every_display_matrix_is_honoured(tmp_path, matrix):
    source = write_video(tmp_path / "a.mp4", 3)
    data = bytearray(source.read_bytes())
    at = data.find(b"tkhd") + 44
    a, b, c, d = (value << 16 for value in matrix)
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path = tmp_path / "turned.mp4"
    path.write_bytes(data)
    expected = np.stack(
        [resize_and_crop_frame(np.ascontiguousarray(MATRICES[matrix](f)), 336) for f in reference(source)]
    )
    assert np.array_equal(decode(path)[0], expected)
    info = probe_video(path)
    assert (info.width, info.height) == ((240, 320) if matrix[0] == 0 else (320, 240))


def test_a_matrix_that_is_absent_or_odd_turns_nothing():
    assert orientation_of(None) == orientation_of(b"") == Orientation()
    assert orientation_of(struct.pack("=9i", 60000, 200, 0, -200, 60000, 0, 0, 0, 1 << 30)) == Orientation()


def test_pixels_that_are_not_square_are_stretched(tmp_path):
    path = tmp_path / "wide.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 176, 144, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(2, 1)
        for number in range(5):
            frame = av.VideoFrame.from_ndarray(numbered_frame(number, 176, 144), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    info = probe_video(path)
    assert (info.width, info.height, info.pixel_aspect) == (352, 144, 2.0)
    stored = reference(path)
    shown = [
        np.asarray(Image.fromarray(frame).resize((int(336 * 352 / 144), 336), Image.Resampling.BICUBIC))
        for frame in stored
    ]
    left = (shown[0].shape[1] - 336) // 2
    assert np.array_equal(decode(path)[0], np.stack([frame[:, left : left + 336] for frame in shown]))
    kept, _ = decode(path, choice=FrameChoice(num_frames=99, stored_shape=True), timeout=30)
    assert np.array_equal(kept, np.stack([resize_and_crop_frame(frame, 336) for frame in stored]))


@pytest.mark.parametrize(
    ("matrix", "full", "expected"),
    [(1, False, (19, 168, 59)), (5, False, (31, 190, 62)), (2, False, (31, 190, 62)), (1, True, None)],
)
def test_colours_follow_the_matrix_and_the_range(matrix, full, expected):
    """The YUV of (19, 168, 59) in BT.709, limited range: what a reader takes for BT.601 is another green."""
    y, u, v = (126, 95, 67) if not full else (128, 89, 53)
    frame = av.VideoFrame(64, 64, "yuv420p")
    for plane, value in zip(frame.planes, (y, u, v)):
        plane.update(bytes([value]) * plane.buffer_size)
    frame.colorspace, frame.color_range = matrix, 2 if full else 1
    found = RgbConverter()(frame)[8, 8].astype(int)
    if expected is None:  # computed by the definition of BT.709, full range
        r, b = y + 1.5748 * (v - 128), y + 1.8556 * (u - 128)
        expected = (r, (y - 0.2126 * r - 0.0722 * b) / 0.7152, b)
    assert np.abs(found - np.array(expected)).max() <= 1


# -- damage, limits, what is refused ----------------------------------------------------------------------------------


def damaged(source, target, seed):
    data = bytearray(source.read_bytes())
    for place in np.random.default_rng(seed).integers(len(data) // 4, len(data) * 3 // 4, 60):
        data[int(place)] ^= 1 << int(place) % 8
    target.write_bytes(data)
    return target


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
def test_a_damaged_file_gives_the_same_frames_every_time(tmp_path, suffix):
    source = write_video(tmp_path / f"a{suffix}", 120, options={"movflags": "faststart"} if suffix == ".mp4" else None)
    path = damaged(source, tmp_path / f"b{suffix}", 3)
    choice = FrameChoice(num_frames=120)
    found = [decode(path, choice=choice, timeout=30, workers=number) for number in (1, 2, 4)]
    found.append(decode(path, choice=choice))
    for frames, times in found[1:]:
        assert times == found[0][1] and np.array_equal(frames, found[0][0])


def test_a_fragmented_file_that_was_cut_says_so(tmp_path):
    source = write_video(tmp_path / "a.mp4", 80, options={"movflags": "frag_keyframe+empty_moov"})
    assert probe_video(source).damage is None
    assert "cut short" in probe_video(cut(source, tmp_path / "b.mp4", 0.7)).damage


def test_an_unknown_codec_is_named_as_such(tmp_path):
    source = write_video(tmp_path / "a.mp4", 3)
    path = tmp_path / "b.mp4"
    path.write_bytes(source.read_bytes().replace(b"avc1", b"zzzz"))
    for timeout in (None, 30):
        with pytest.raises(VideoError, match=r"no decoder for its video codec|no video stream"):
            decode(path, timeout=timeout)


def test_the_cause_of_an_error_in_a_process_is_told(tmp_path, monkeypatch):
    path = shutil.copy(SAMPLE, tmp_path / "a.mp4")
    monkeypatch.setattr("videoxl.media.choice.FrameChoice.__post_init__", lambda self: None)
    broken = FrameChoice(num_frames="many")  # the process checks it again, and says why
    with pytest.raises(VideoError, match="the number of frames is 'many'"):
        decode(path, choice=broken, timeout=30)


@pytest.mark.parametrize("name", ["a:b.mp4", "concat:x.mp4", "pipe:0", "50%.mp4", "a b#c?.mp4"])
def test_a_name_is_a_file_and_no_protocol(tmp_path, monkeypatch, name):
    shutil.copy(SAMPLE, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert probe_video(name).num_frames > 100


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{film}\n#EXT-X-ENDLIST\n", "HLS playlist"),
        ("ffconcat version 1.0\nfile '{film}'\n", "concat list"),
        ("<?xml version='1.0'?>\n<MPD></MPD>\n", "DASH manifest"),
    ],
)
@pytest.mark.parametrize("suffix", [".m3u8", ".mp4"])
def test_playlists_open_no_other_file(tmp_path, text, kind, suffix):
    path = tmp_path / f"list{suffix}"
    path.write_text(text.format(film=SAMPLE))
    with pytest.raises(VideoError, match=kind):
        probe_video(path)


def test_frames_that_are_too_large_are_refused_before_memory_is_taken(tmp_path):
    path = tmp_path / "huge.gif"
    Image.new("P", (8, 8)).save(path, save_all=True, append_images=[Image.new("P", (8, 8), 3)])
    data = bytearray(path.read_bytes())
    data[6:10] = struct.pack("<HH", 16000, 16000)
    path.write_bytes(data)
    with pytest.raises(VideoError, match="16000 x 16000 pixels; at most"):
        probe_video(path)


def test_a_long_thin_picture_takes_no_memory(tmp_path):
    path = tmp_path / "line.png"
    Image.new("RGB", (100_000, 1), (10, 20, 30)).save(path)
    assert PROCESSOR.resize(path).float().mean(dim=(0, 1, 2)).tolist() == [10, 20, 30]
    with pytest.raises(PictureError, match="Crop it first"):
        pad_to_square(load_picture(path), (0, 0, 0))


@pytest.mark.parametrize(
    ("array", "mean"),
    [
        (np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64), 127.5),
        (np.linspace(0, 1, 64 * 64, dtype=np.float32).reshape(64, 64), 127.5),
        (np.linspace(0, 2**31 - 1, 64 * 64).astype(np.int32).reshape(64, 64), 127.5),
        (np.linspace(0, 255, 64 * 64, dtype=np.float32).reshape(64, 64), 127.5),
    ],
    ids=["16 bits", "float", "32 bits", "float of 255"],
)
def test_greyscale_is_scaled_by_its_range(tmp_path, array, mean):
    path = tmp_path / "grey.tiff"
    Image.fromarray(array).save(path)
    assert np.asarray(load_picture(path)).mean() == pytest.approx(mean, abs=0.5)


def test_postscript_is_not_handed_to_a_program(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n")
    with pytest.raises(PictureError, match="is not a picture"):
        load_picture(path)


# -- parts and processes ----------------------------------------------------------------------------------------------

KINDS = {
    "b-frames.mp4": ("libx264", {"bf": "3"}, None),
    "open-gop.mkv": ("libx264", {"x264-params": "open-gop=1:bframes=3:keyint=12"}, None),
    "no-b.ts": ("libx264", {"bf": "0"}, None),
    "hevc.mp4": ("libx265", {"x265-params": "log-level=none:keyint=12"}, None),
    "mpeg2.ts": ("mpeg2video", {"bf": "2"}, None),
    "mpeg4.mp4": ("mpeg4", {"bf": "2"}, None),
    "vp9.webm": ("libvpx-vp9", {"g": "12"}, None),
    "ffv1.mkv": ("ffv1", {}, None),
    "fragments.mp4": ("libx264", {"bf": "2"}, {"movflags": "frag_keyframe+empty_moov"}),
}


@pytest.mark.parametrize("name", KINDS)
def test_parts_give_what_plain_decoding_gives(tmp_path, name):
    codec, encoder, container = KINDS[name]
    try:
        path = write_video(tmp_path / name, 90, codec=codec, encoder_options=encoder, options=container)
    except (av.error.FFmpegError, ValueError, av.codec.codec.UnknownCodecError):
        pytest.skip(f"this FFmpeg has no {codec}")
    expected = reference(path)
    index = index_video(path)
    assert index.timed and index.info.num_frames == len(expected)
    for wanted in (range(90), [3, 40, 41, 89], range(0, 90, 7)):
        found = list(PyAVDecoder().frames(index, list(wanted)))
        assert [number for number, _ in found] == list(wanted)
        assert all(np.array_equal(frame, expected[number]) for number, frame in found)
    small = np.stack([resize_and_crop_frame(frame, 336) for frame in expected])
    for workers in (1, 3):
        assert np.array_equal(decode(path, timeout=60, workers=workers)[0], small)


def test_keyframes_are_chosen_by_their_times_and_decoded_alone(tmp_path):
    path = write_video(tmp_path / "a.mp4", 100, gop=10, encoder_options={"sc_threshold": "0"})
    choice = FrameChoice(num_frames=6, sampling="keyframes")
    frames, times = decode(path, choice=choice, timeout=30)
    numbers = [read_number(frame) for frame in frames]
    assert numbers == [0, 20, 40, 60, 80, 90] and times == pytest.approx([number / 25 for number in numbers])
    assert all(np.array_equal(a, b) for a, b in zip(frames, decode(path)[0][numbers]))
    assert [read_number(f) for f in decode(path, choice=FrameChoice(fps=25, sampling="keyframes"))[0]] == [
        *range(0, 100, 10)
    ]
    with pytest.raises(VideoError, match="sampling is 'often'; use uniform or keyframes"):
        FrameChoice(num_frames=3, sampling="often")


@pytest.mark.skipif(shutil.which("ffprobe") is None, reason="ffprobe is not installed")
@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
def test_ffprobe_counts_and_times_the_same_frames(tmp_path, suffix):
    path = write_video(tmp_path / f"a{suffix}", 50, encoder_options={"bf": "2"})
    command = ["ffprobe", "-v", "error", "-select_streams", "v", "-show_entries", "frame=pts_time", "-of", "csv=p=0"]
    said = subprocess.run([*command, str(path)], capture_output=True, text=True, check=True).stdout.split()
    seconds = np.array([float(line.strip(",")) for line in said])
    np.testing.assert_allclose(probe_video(path).timestamps, seconds - seconds[0], atol=2e-3)


def test_a_part_of_one_long_group_gives_its_first_frames_at_once(tmp_path, monkeypatch):
    """A film with one keyframe is one part: its frames must not be held until the last one is decoded."""
    path = write_video(tmp_path / "a.mp4", 200, gop=1000, encoder_options={"sc_threshold": "0"})
    index, decoded = index_video(path), []
    original = RgbConverter.__call__
    monkeypatch.setattr(
        RgbConverter, "__call__", lambda self, frame, size: decoded.append(1) or original(self, frame, size)
    )
    frames = PyAVDecoder().frames(index, list(range(200)))
    assert next(frames)[0] == 0 and len(decoded) == 1
    frames.close()
    monkeypatch.setattr("videoxl.media.part_queue.FRAMES_AHEAD", 4)
    stream = open_video(path, PROCESSOR, FrameChoice(num_frames=200), timeout=30, chunk=1, workers=2)
    assert [read_number(chunk.frames[0]) for chunk in stream] == list(range(200))


def test_frames_that_are_no_keyframes_are_decoded_from_further_back(tmp_path):
    source = write_video(tmp_path / "a.mkv", 60, gop=20, encoder_options={"bf": "0", "sc_threshold": "0"})
    index = index_video(source)
    wrong = np.sort(np.append(index.keyframes, index.pts[[31, 33]]))  # marked as keyframes, and none
    index.keyframes = wrong
    assert [number for number, _ in PyAVDecoder().frames(index, [25, 32, 34, 50])] == [25, 32, 34, 50]


def test_the_published_rule_of_a_rate_is_kept_for_slow_files():
    for total, rate, fps in ((50, 0.5, 1.0), (50, 0.7, 1.0), (50, 1.0, 1.0), (10, 0.3, 2.0), (300, 25.0, 1.0)):
        info = VideoInfo("x", np.arange(total) / rate, 4, 4, rate, "h264")
        moments = np.arange(max(1, int(total / rate * fps)))
        chosen = FrameChoice(fps=fps, by_average_rate=True).indices(info)
        assert chosen.tolist() == np.unique((moments * rate / fps).astype(int)).tolist()


def test_what_comes_before_the_first_keyframe_is_said_to_be_lost(tmp_path):
    source = write_video(tmp_path / "a.ts", 60, gop=20, encoder_options={"bf": "0", "sc_threshold": "0"})
    data = source.read_bytes()
    path = tmp_path / "b.ts"
    path.write_bytes(data[: 188 * 3] + data[188 * (len(data) // 188 // 5) :])
    info = probe_video(path)
    frames, times = decode(path)
    assert len(frames) == info.num_frames < 60 and times[0] == 0
    assert any("before the first keyframe" in odd for odd in info.oddities)


@pytest.mark.parametrize("workers", [0, -1, 1.5])
def test_a_number_of_workers_that_cannot_be_is_named(workers):
    with pytest.raises(VideoError, match=f"workers is {workers}; it must be a whole number of at least 1"):
        open_video(SAMPLE, PROCESSOR, FrameChoice(num_frames=3), timeout=30, workers=workers)


# -- the index of before ----------------------------------------------------------------------------------------------


@pytest.fixture
def kept_index(tmp_path, monkeypatch):
    """A film whose index is in the user's cache."""
    monkeypatch.setenv("VIDEOXL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("videoxl.media.index_cache.SMALLEST", 0)
    path = Path(shutil.copy(SAMPLE, tmp_path / "a.mp4"))
    return path, index_video(path), cached_index(path)


def test_a_film_is_indexed_once(kept_index, monkeypatch):
    path, fresh, _ = kept_index
    monkeypatch.setattr("videoxl.media.index_cache.index_video", None)  # calling it would fail
    again = cached_index(path)
    assert again.info.duration == fresh.info.duration and again.info.oddities == fresh.info.oddities
    for name in ("pts", "keyframes"):
        assert np.array_equal(getattr(again, name), getattr(fresh, name))
    assert np.array_equal(again.info.timestamps, fresh.info.timestamps)
    moved = path.rename(path.with_name("b.mp4"))
    assert cached_index(moved).info.path == str(moved)


def test_another_film_of_the_same_name_is_indexed_anew(kept_index, tmp_path):
    path, fresh, _ = kept_index
    write_video(path, 7)
    assert cached_index(path).info.num_frames == 7 != fresh.info.num_frames


@pytest.mark.parametrize("damage", [lambda file: file.write_bytes(b"PK nonsense"), lambda file: cut(file, file, 0.5)])
def test_a_damaged_index_is_read_again(kept_index, tmp_path, damage):
    path, fresh, _ = kept_index
    (entry,) = (tmp_path / "cache" / "index").iterdir()
    damage(entry)
    assert cached_index(path).info.num_frames == fresh.info.num_frames


def test_a_cache_that_cannot_be_written_is_done_without(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VIDEOXL_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr("videoxl.media.index_cache.SMALLEST", 0)
    assert cached_index(SAMPLE).info.num_frames > 100


def test_a_matroska_file_that_begins_late_is_not_called_cut(tmp_path):
    path = write_video(tmp_path / "late.mkv", 30, times=np.arange(30) / 10 + 3)
    info = probe_video(path)
    assert info.damage is None
    assert info.duration == pytest.approx(3.0, abs=0.11)
    cut(path, tmp_path / "cut.mkv", 0.5)
    assert "cut short" in (probe_video(tmp_path / "cut.mkv").damage or "")
