"""Video input on real files: frame choice, true times, every container, damage, time limits, three decoders."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import threading
import time

import av
import numpy as np
import pytest
from conftest import ROOT, SAMPLE
from videos import cut, read_number, rotate_mp4, write_sound, write_video

from videoxl.errors import MissingDependencyError, VideoError, VideoTimeoutError, VideoWarning
from videoxl.media.choice import FrameChoice
from videoxl.media.container import decode_frames, open_container
from videoxl.media.decoders import read_frames
from videoxl.media.index import index_video
from videoxl.media.pixels import VideoXLImageProcessor
from videoxl.media.stream import open_video, probe_video

PROCESSOR = VideoXLImageProcessor()


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """A folder of short test videos."""
    folder = tmp_path_factory.mktemp("clips")
    write_video(folder / "h264.mp4", 120)
    write_video(folder / "h264.mkv", 120)
    write_video(folder / "vp9.webm", 60, codec="libvpx-vp9")
    write_video(folder / "hevc.mp4", 60, codec="libx265")
    write_video(folder / "fast.mp4", 120, options={"movflags": "faststart"})
    rotate_mp4(folder / "h264.mp4", folder / "rotated.mp4")
    write_sound(folder / "sound.mp4")
    (folder / "text.mp4").write_text("this is no video\n")
    (folder / "empty.mp4").write_bytes(b"")
    for name in ("h264.mp4", "h264.mkv", "fast.mp4"):
        cut(folder / name, folder / f"cut-{name}", 0.55)
    return folder


def read(path, choice=None, **kwargs):
    """(frames uint8 [n, 336, 336, 3], times, numbers, stream) of everything that is streamed."""
    stream = open_video(path, PROCESSOR, choice or FrameChoice(num_frames=10_000), **kwargs)
    chunks = list(stream)
    frames = np.concatenate([chunk.frames for chunk in chunks])
    return frames, [t for c in chunks for t in c.timestamps], [i for c in chunks for i in c.indices], stream


@pytest.mark.parametrize("name", ["h264.mp4", "h264.mkv", "vp9.webm", "hevc.mp4"])
@pytest.mark.filterwarnings("ignore::videoxl.video.VideoWarning")
def test_every_frame_of_every_container_is_counted_timed_and_right(clips, name):
    frames, times, numbers, stream = read(clips / name)
    total = stream.info.num_frames
    assert total == (120 if "h264" in name else 60)
    assert numbers == list(range(total))
    np.testing.assert_allclose(times, np.arange(total) / 25, atol=2e-3)
    assert [read_number(frame) for frame in frames] == numbers
    assert stream.info.duration == pytest.approx(total / 25, abs=0.01)


@pytest.mark.parametrize("number", [1, 2, 7, 64, 119])
def test_uniform_choice_is_the_published_rule(clips, number):
    frames, _, numbers, _ = read(clips / "h264.mp4", FrameChoice(num_frames=number))
    assert numbers == np.linspace(0, 119, number, dtype=int).tolist()
    assert [read_number(frame) for frame in frames] == numbers


def test_a_rate_takes_what_is_on_the_screen_and_bounds_hold(clips):
    path = clips / "h264.mp4"
    assert read(path, FrameChoice(fps=5))[2] == list(range(0, 120, 5))
    assert read(path, FrameChoice(fps=2.5, start=1.0, end=3.0))[2] == [25, 35, 45, 55, 65]
    assert read(path, FrameChoice(fps=1000))[2] == list(range(120))
    assert read(path, FrameChoice(fps=25, max_frames=4))[2] == [0, 39, 79, 119]
    assert read(path, FrameChoice(num_frames=50, max_frames=3, start=2, end=4))[2] == [50, 74, 99]


def test_times_of_a_variable_rate_file_are_true(tmp_path):
    times = np.cumsum([0, *[0.04, 0.2, 0.5] * 12]).round(3)
    path = write_video(tmp_path / "vfr.mp4", len(times), times=times)
    frames, found, numbers, _ = read(path, FrameChoice(num_frames=len(times)))
    np.testing.assert_allclose(found, times, atol=2e-3)
    assert [read_number(frame) for frame in frames] == numbers
    shown = [int(np.searchsorted(times, moment + 1e-3, side="right")) - 1 for moment in np.arange(0, times[-1], 1.0)]
    assert read(path, FrameChoice(fps=1))[2] == shown


def test_rotation_is_honoured(clips):
    info = probe_video(clips / "rotated.mp4")
    assert (info.width, info.height, info.rotation % 180) == (240, 320, 90)
    indexed = [index_video(str(clips / name)) for name in ("h264.mp4", "rotated.mp4")]
    upright, turned = (next(read_frames(index, [7], "pyav"))[1] for index in indexed)
    assert np.array_equal(turned, np.rot90(upright, -1))  # the matrix turns clockwise


def test_seeking_decodes_few_frames_and_finds_the_right_ones(tmp_path, monkeypatch):
    import videoxl.media.decoders.pyav as decoder

    path = write_video(tmp_path / "long.mp4", 600, gop=25)
    decoded = []

    def counting(container, stream, wanted):
        for frame in original(container, stream, wanted):
            decoded.append(frame.pts)
            yield frame

    original = decoder.decode_frames
    monkeypatch.setattr(decoder, "decode_frames", counting)
    frames, _, numbers, _ = read(path, FrameChoice(num_frames=6))
    assert [read_number(frame) for frame in frames] == numbers
    assert len(decoded) < 6 * 30
    decoded.clear()
    read(path, FrameChoice(num_frames=300))
    assert len(decoded) <= 660  # wanted frames lie close together: decoded on, hardly anything twice


@pytest.mark.parametrize("codec", ["libx264", "mpeg2video", "libx265", "libvpx-vp9", "libsvtav1"])
def test_leaving_out_what_no_frame_refers_to_changes_no_bit_of_the_rest(tmp_path, codec):
    suffix = {"libvpx-vp9": ".webm", "mpeg2video": ".mkv"}.get(codec, ".mp4")
    options = {"x264-params": "bframes=3:b-pyramid=normal"} if codec == "libx264" else {}
    if codec == "mpeg2video":
        options = {"bf": "2"}
    path = write_video(tmp_path / f"b{suffix}", 120, codec=codec, gop=60, encoder_options=options)
    index = index_video(str(path))
    with open_container(str(path)) as container:
        stream = container.streams.video[0]
        everything = [frame.to_ndarray(format="rgb24") for frame in decode_frames(container, stream)]
    assert len(everything) == 120
    for wanted in (list(range(3, 120, 7)), [61], list(range(20, 60))):
        chosen = dict(read_frames(index, wanted, "pyav"))
        assert list(chosen) == wanted
        assert all(np.array_equal(chosen[number], everything[number]) for number in wanted)
    with open_container(str(path)) as container:
        times = set(index.pts[3:120:7].tolist())
        decoded = sum(1 for _ in decode_frames(container, container.streams.video[0], times))
    assert decoded < 100 if codec in ("libx264", "mpeg2video") else decoded == 120


@pytest.mark.parametrize("name", ["h264.mp4", "h264.mkv", "vp9.webm"])
@pytest.mark.filterwarnings("ignore::videoxl.video.VideoWarning")
def test_one_damaged_frame_costs_its_group_and_no_more(clips, tmp_path, name):
    with av.open(str(clips / name)) as container:
        packets = [packet for packet in container.demux(container.streams.video[0]) if packet.size]
        keyframes = [packet.pts for packet in packets if packet.is_keyframe]
    victim = max((p for p in packets if not p.is_keyframe and p.pts < keyframes[1]), key=lambda packet: packet.size)
    data = bytearray((clips / name).read_bytes())
    place = data.find(bytes(victim))
    data[place + 4 : place + victim.size] = b"\xff" * (victim.size - 4)
    (tmp_path / name).write_bytes(data)
    frames, _, numbers, stream = read(tmp_path / name)
    in_group = np.searchsorted(np.sort([packet.pts for packet in packets]), keyframes[1])
    assert len(frames) >= stream.info.num_frames - in_group
    assert [read_number(frame) for frame, n in zip(frames, numbers) if n >= in_group] == [
        n for n in numbers if n >= in_group
    ]


@pytest.mark.filterwarnings("ignore::videoxl.video.VideoWarning")
def test_a_stream_that_was_joined_late_is_read_from_its_first_keyframe(clips, tmp_path):
    with av.open(str(clips / "h264.mkv")) as source, av.open(str(tmp_path / "late.ts"), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in list(source.demux(source.streams.video[0]))[5:]:
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    frames, _, _, _ = read(tmp_path / "late.ts")
    assert len(frames) >= 100
    first = read_number(frames[-1]) - len(frames) + 1
    assert [read_number(frame) for frame in frames] == list(range(first, first + len(frames)))


@pytest.mark.filterwarnings("ignore::videoxl.video.VideoWarning")
def test_packets_without_presentation_times_are_read_by_decoding(tmp_path):
    path = write_video(tmp_path / "old.avi", 40)  # H.264 with B-frames; AVI stores no presentation times
    frames, _, numbers, _ = read(path)
    assert [read_number(frame) for frame in frames] == list(range(40)) and numbers == list(range(40))
    assert [read_number(frame) for frame in read(path, FrameChoice(num_frames=4))[0]] == [0, 13, 26, 39]


@pytest.mark.filterwarnings("ignore::videoxl.video.VideoWarning")
def test_a_raw_stream_without_times_is_counted(tmp_path):
    frames, times, _, _ = read(write_video(tmp_path / "raw.h264", 20))
    assert [read_number(frame) for frame in frames] == list(range(20))
    np.testing.assert_allclose(times, np.arange(20) / 25)


def test_frames_that_an_edit_list_hides_are_no_damage(tmp_path):
    times = np.arange(40) / 25 - 0.2  # an mp4 that starts before zero gets an edit list
    path = write_video(tmp_path / "edited.mp4", 40, times=times)
    assert probe_video(path).damage is None


def test_a_stream_is_read_once(clips):
    stream = open_video(clips / "h264.mp4", PROCESSOR, FrameChoice(num_frames=3))
    assert len(list(stream)) == 1
    with pytest.raises(VideoError, match="were read already"):
        list(stream)


def test_decoding_goes_on_while_the_model_computes(clips):
    """Nothing is taken from the stream, and yet the decoder gets through its 60 frames and ends."""
    path = clips / "h264.mp4"
    with open_video(path, PROCESSOR, FrameChoice(num_frames=60), chunk=1, timeout=30) as stream:
        chunks = iter(stream)
        next(chunks)
        deadline = time.monotonic() + 30
        while decoder_processes(path) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert decoder_processes(path) == []
        assert sum(1 for _ in chunks) == 59


def test_a_process_outlives_the_thread_that_opened_it(clips):
    opened = []
    thread = threading.Thread(
        target=lambda: opened.append(open_video(clips / "h264.mp4", PROCESSOR, FrameChoice(num_frames=90), timeout=30))
    )
    thread.start()
    thread.join()
    assert sum(len(chunk.frames) for chunk in opened[0]) == 90


def test_a_process_that_was_never_read_ends_when_closed(clips):
    path = clips / "h264.mp4"
    stream = open_video(path, PROCESSOR, FrameChoice(num_frames=100), timeout=30)
    assert len(decoder_processes(path)) == 1
    stream.close()
    assert decoder_processes(path) == []


def test_more_frames_than_there_are_uses_all_and_says_so(clips):
    with pytest.warns(VideoWarning, match="120 frames where 500 were asked for"):
        _, _, numbers, stream = read(clips / "h264.mp4", FrameChoice(num_frames=500))
    assert len(numbers) == 120 and len(stream.notes) == 1


@pytest.mark.parametrize("name", ["cut-fast.mp4", "cut-h264.mkv"])
def test_of_a_cut_file_the_usable_part_is_used_and_its_share_said(clips, name):
    with pytest.warns(VideoWarning, match=r"of 4\.8 s\) can be read|of 4\.8 s can be read"):
        frames, _, numbers, stream = read(clips / name)
    assert 30 < len(frames) < 100
    assert [read_number(frame) for frame in frames] == numbers
    assert "cut short" in stream.info.damage


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("none.mp4", "no such video"),
        ("text.mp4", "cannot be opened as a video"),
        ("empty.mp4", "cannot be opened as a video"),
        ("cut-h264.mp4", "index is missing because the file was cut"),
        ("sound.mp4", "no video stream \\(it holds audio\\)"),
        (".", "is a folder"),
    ],
)
@pytest.mark.parametrize("timeout", [None, 30])
def test_what_is_no_video_is_named(clips, name, said, timeout):
    with pytest.raises(VideoError, match=said):
        read(clips / name, timeout=timeout)


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        ({}, "either"),
        ({"num_frames": 3, "fps": 1}, "either"),
        ({"num_frames": 0}, "the number of frames is 0"),
        ({"fps": -1.0}, "fps is -1"),
        ({"num_frames": 3, "max_frames": 0}, "largest number of frames is 0"),
        ({"num_frames": 3, "start": 5, "end": 5}, "empty"),
        ({"num_frames": 3, "start": 900}, "no frame from 900 s on; it is 4.80 s long"),
    ],
)
def test_frames_that_cannot_be_chosen_are_named(clips, choice, said):
    with pytest.raises(VideoError, match=said):
        read(clips / "h264.mp4", FrameChoice(**choice))


def test_an_unknown_decoder_is_named(clips):
    with pytest.raises(VideoError, match="'vlc' is not known; use pyav, decord, torchcodec"):
        read(clips / "h264.mp4", backend="vlc")


@pytest.mark.parametrize("backend", ["decord", "torchcodec"])
@pytest.mark.parametrize("timeout", [None, 60])
def test_other_decoders_give_equal_frames(clips, backend, timeout):
    if importlib.util.find_spec(backend) is None:
        with pytest.raises(MissingDependencyError, match=backend):
            read(clips / "h264.mp4", FrameChoice(num_frames=3), backend=backend, timeout=timeout)
        pytest.skip(f"{backend} is not installed; the error that says so was checked")
    for name in ("h264.mp4", "h264.mkv", "rotated.mp4"):
        expected = read(clips / name, FrameChoice(num_frames=30))[0]
        try:
            found = read(clips / name, FrameChoice(num_frames=30), backend=backend, timeout=timeout)[0]
        except MissingDependencyError as error:
            pytest.skip(f"{backend} is installed but does not load: {error}")
        assert np.array_equal(found, expected), name


def test_the_decoders_own_scaler_is_close_and_off_by_default(clips):
    exact = read(clips / "h264.mp4", FrameChoice(num_frames=5))[0].astype(int)
    scaled = read(clips / "h264.mp4", FrameChoice(num_frames=5), decoder_scaler=True)[0].astype(int)
    difference = np.abs(exact - scaled)
    assert 0 < difference.mean() < 4
    with pytest.raises(VideoError, match="works with backend 'pyav'"):
        read(clips / "h264.mp4", FrameChoice(num_frames=5), decoder_scaler=True, backend="decord")


def test_chunks_are_bounded_and_a_process_gives_the_same(clips):
    stream = open_video(clips / "h264.mp4", PROCESSOR, FrameChoice(num_frames=50), chunk=8, timeout=30)
    chunks = list(stream)
    assert [len(chunk.frames) for chunk in chunks] == [8] * 6 + [2]
    expected = read(clips / "h264.mp4", FrameChoice(num_frames=50))[0]
    assert np.array_equal(np.concatenate([chunk.frames for chunk in chunks]), expected)


def test_a_hanging_decoder_is_killed(clips, tmp_path):
    sys.path.insert(0, str(ROOT / "tests" / "plugins"))
    import hanging  # noqa: F401  # registers the decoder

    film = shutil.copy(clips / "h264.mp4", tmp_path / "hang.mp4")
    start = time.monotonic()
    with pytest.raises(VideoTimeoutError, match="no frame for 2 s; the decoder was killed"):
        read(film, timeout=2, backend="hanging")
    assert time.monotonic() - start < 10
    assert decoder_processes(film) == []


def test_a_pipe_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    for timeout in (None, 10):
        with pytest.raises(VideoError, match="is a pipe or a device"):
            read(tmp_path / "pipe.mp4", timeout=timeout)


def test_a_stream_that_is_left_early_leaves_no_process(clips):
    path = clips / "h264.mp4"
    with open_video(path, PROCESSOR, FrameChoice(num_frames=100), chunk=1, timeout=30) as stream:
        next(iter(stream))
        assert len(decoder_processes(path)) == 1
    assert decoder_processes(path) == []


def test_closing_a_stream_whose_queue_is_full_ends_its_thread(clips, monkeypatch):
    monkeypatch.setattr("videoxl.media.part_queue.FRAMES_AHEAD", 3)
    before = threading.active_count()
    with open_video(clips / "h264.mp4", PROCESSOR, FrameChoice(num_frames=100), chunk=1, timeout=30) as stream:
        next(iter(stream))
        time.sleep(1)
    deadline = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert threading.active_count() <= before


def test_a_decoder_dies_with_its_parent(tmp_path):
    film = shutil.copy(SAMPLE, tmp_path)  # other tests decode the sample meanwhile
    script = f"""
import sys, time
sys.path.insert(0, {str(ROOT)!r})
from videoxl.media.pixels import VideoXLImageProcessor
from videoxl.video import FrameChoice, open_video
stream = open_video({str(film)!r}, VideoXLImageProcessor(), FrameChoice(num_frames=600), chunk=1, timeout=60)
next(iter(stream))
print("ready", flush=True)
time.sleep(60)
"""
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout.readline() == "ready\n"
    assert decoder_processes(film)
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 10
    while decoder_processes(film) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert decoder_processes(film) == []


def decoder_processes(path) -> list:
    psutil = pytest.importorskip("psutil")
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        command = " ".join(process.info["cmdline"] or [])
        if "media.worker" in command and str(path) in command and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


def test_the_benchmark_of_decoding_reads_all_frames_and_measures_them(tmp_path):
    output = tmp_path / "result.json"
    command = [sys.executable, str(ROOT / "scripts" / "benchmark_video.py"), "--video", str(SAMPLE), "--output", output]
    done = subprocess.run([*command, "--frames", "8", "--rounds", "1"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    here = json.loads(output.read_text())["results"][0]
    assert here["who"] == "here" and here["seconds"] > 0 and here["peak_mib"] > 10
    assert [run["frames"] for run in here["runs"]] == [8]
