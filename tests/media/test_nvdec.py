"""The GPU's decoder, with one of software in its place: the CPU's frames, and what it cannot do is left to the CPU."""

from __future__ import annotations

import importlib.util
import platform
import threading
import time
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from software_nvdec import SoftwareNvdec
from videos import cut, rotate_mp4, write_video

from videoxl.errors import MissingDependencyError, VideoError
from videoxl.media.choice import FrameChoice
from videoxl.media.colour import RgbConverter
from videoxl.media.nvdec import is_idr, is_unreferenced
from videoxl.media.orientation import Orientation
from videoxl.media.pixels import VideoXLImageProcessor
from videoxl.media.process import DecoderProcess
from videoxl.media.stream import open_video
from videoxl.media.yuv import yuv420_to_rgb

pytestmark = pytest.mark.filterwarnings("ignore::videoxl.video.VideoWarning")
PROCESSOR = VideoXLImageProcessor(56)
CPU = torch.device("cpu")
DECODED = ("h264.mp4", "h264.mkv", "h264.ts", "long.mp4", "hevc.mp4", "vp9.webm", "av1.mp4", "turned.mp4")
ROUNDING = 0 if platform.machine() in ("x86_64", "AMD64") else 1  # swscale has other arithmetic elsewhere


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    write_video(folder / "h264.mp4", 100)
    write_video(folder / "h264.mkv", 100, size=(180, 320))
    write_video(folder / "h264.ts", 100)
    write_video(folder / "long.mp4", 100, gop=100, encoder_options={"sc_threshold": "0"})
    write_video(folder / "hevc.mp4", 60, codec="libx265")
    write_video(folder / "vp9.webm", 60, codec="libvpx-vp9")
    write_video(folder / "av1.mp4", 60, codec="libsvtav1")
    write_video(folder / "mpeg4.mp4", 60, codec="mpeg4")
    rotate_mp4(folder / "h264.mp4", folder / "turned.mp4")
    cut(folder / "h264.mkv", folder / "cut.mkv", 0.6)
    return folder


@pytest.fixture
def nvdec(monkeypatch):
    """Put a decoder in the GPU's place; one with other habits by calling it."""

    def use(*args, **kwargs) -> SoftwareNvdec:
        module = SoftwareNvdec(*args, **kwargs)
        monkeypatch.setattr("videoxl.media.gpu_decoders.load_nvdec", lambda device: module)
        return module

    return use


def read(path, choice=None, backend="nvdec", **options):
    """(frames, their numbers, notes)."""
    stream = open_video(path, PROCESSOR, choice or FrameChoice(fps=1000), backend=backend, device=CPU, **options)
    with stream:
        chunks = list(stream)
    frames = [np.asarray(chunk.frames) for chunk in chunks]
    return np.concatenate(frames), [number for chunk in chunks for number in chunk.indices], stream.notes


def assert_equal_to_cpu(path, choice=None, backend="nvdec", **options) -> list[str]:
    expected, numbers, _ = read(path, choice, backend="pyav")
    frames, found, notes = read(path, choice, backend, **options)
    assert found == numbers
    assert np.abs(frames.astype(int) - expected).max() <= ROUNDING
    return notes


@pytest.mark.parametrize("full_range", [False, True])
@pytest.mark.parametrize("matrix", [1, 4, 5, 7, 9])
def test_colours_are_swscales_to_the_bit(matrix, full_range):
    luma, u, v = (np.random.default_rng(seed).integers(0, 256, size, np.uint8) for seed, size in enumerate(PLANES))
    frame = av.VideoFrame(640, 480, "yuv420p")
    for plane, values in zip(frame.planes, (luma, u, v)):
        rows = np.zeros((plane.height, plane.line_size), np.uint8)
        rows[:, : values.shape[1]] = values
        plane.update(rows.tobytes())
    frame.colorspace, frame.color_range = matrix, 2 if full_range else 1
    chroma = torch.from_numpy(np.stack([u, v], -1))
    ours = yuv420_to_rgb(torch.from_numpy(luma), chroma, matrix, full_range).numpy()
    assert np.abs(ours.astype(int) - RgbConverter()(frame)).max() <= ROUNDING


PLANES = ((480, 640), (240, 320), (240, 320))


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
@pytest.mark.parametrize("mirrored", [False, True])
def test_tensors_are_turned_as_arrays_are(rotation, mirrored):
    frame = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    orientation = Orientation(rotation, mirrored)
    turned = orientation.apply_to_tensor(torch.from_numpy(frame)).numpy()
    np.testing.assert_array_equal(turned, orientation.apply(frame))


@pytest.mark.parametrize("name", DECODED)
@pytest.mark.parametrize("fps", [3, 1000])
def test_frames_are_those_of_the_cpu(clips, nvdec, name, fps):
    module = nvdec()
    assert assert_equal_to_cpu(clips / name, FrameChoice(fps=fps)) == []
    assert module.packets


def test_times_that_start_late_and_pixels_that_are_not_square_are_those_of_the_cpu(clips, nvdec, tmp_path):
    nvdec()
    path = write_video(tmp_path / "slow.mkv", 40, times=np.arange(40) ** 1.5 / 10 + 3)
    assert assert_equal_to_cpu(path, FrameChoice(num_frames=17)) == []
    wide = tmp_path / "wide.mp4"
    with av.open(str(clips / "h264.mp4")) as source, av.open(str(wide), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        stream.sample_aspect_ratio = 2
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    assert assert_equal_to_cpu(wide, FrameChoice(num_frames=9)) == []
    assert assert_equal_to_cpu(wide, FrameChoice(num_frames=9, stored_shape=True)) == []


def test_packets_that_no_wanted_frame_refers_to_are_dropped(clips, nvdec):
    module = nvdec(engines=1)
    assert_equal_to_cpu(clips / "long.mp4", FrameChoice(num_frames=3))
    needed = module.packets
    module = nvdec(engines=1)
    assert_equal_to_cpu(clips / "long.mp4")
    assert needed < 0.8 * module.packets


def test_both_decoders_share_a_file(clips, nvdec, monkeypatch):
    monkeypatch.setattr("videoxl.media.workers._WORTH_THE_GPU", 0)
    module = nvdec()
    assert assert_equal_to_cpu(clips / "h264.mp4", backend="auto", timeout=60, workers=2) == []
    assert module.packets > 0
    small = nvdec()
    monkeypatch.undo()
    small_packets = small.packets
    assert assert_equal_to_cpu(clips / "h264.mp4", backend="auto", timeout=60) == []
    assert small.packets == small_packets == 0  # not worth opening the GPU's decoders


@pytest.mark.parametrize("lost", [0, 1, 12, 57, 99])
def test_what_the_gpu_does_not_give_the_cpu_decodes(clips, nvdec, lost):
    time = int(av.open(str(clips / "h264.mp4")).streams.video[0].time_base ** -1) * lost // 25
    nvdec(gives=lambda frame: frame.pts != time)
    notes = assert_equal_to_cpu(clips / "h264.mp4", timeout=60)
    assert len(notes) == 1 and "by the CPU" in notes[0]


def test_a_decoder_that_fails_on_the_way_leaves_the_rest_to_the_cpu(clips, nvdec):
    def fail(frame):
        if module.packets > 40:
            raise RuntimeError("HW decoder\nfailed")
        return frame

    module = nvdec(change=fail)
    notes = assert_equal_to_cpu(clips / "h264.mp4", timeout=60, workers=2)
    assert any(
        "decoded by the CPU: the GPU's decoder failed (RuntimeError: HW decoder failed)" in each for each in notes
    )


def test_a_decoder_that_sees_other_pixels_is_not_used(clips, nvdec):
    def invert(frame):
        frame.surface = 255 - frame.surface
        return frame

    nvdec(change=invert)
    (note,) = assert_equal_to_cpu(clips / "h264.mp4")
    assert "another way" in note


@pytest.mark.parametrize(
    ("name", "reason"),
    [("mpeg4.mp4", "codec is mpeg4"), ("ten.mp4", "yuv420p10"), ("fields.mp4", "interlaced"), ("cut.mkv", "damaged")],
)
def test_what_the_gpu_would_show_otherwise_is_left_to_the_cpu_with_a_note(clips, nvdec, tmp_path, name, reason):
    if name == "ten.mp4":
        ten_bits(tmp_path / name)
    if name == "fields.mp4":
        write_video(tmp_path / name, 30, encoder_options={"x264-params": "interlaced=1"})
    path = tmp_path / name if (tmp_path / name).exists() else clips / name
    module = nvdec()
    notes = assert_equal_to_cpu(path)
    assert reason in notes[0] and "decoded by the CPU" in notes[0]
    assert module.packets == 0


def ten_bits(path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p10le"
        for number in range(10):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), number * 20, np.uint8), format="rgb24")
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def test_without_a_gpu_its_decoder_is_refused_and_auto_takes_the_cpu(clips):
    with pytest.raises(VideoError, match="NVIDIA GPU"):
        read(clips / "h264.mp4")
    assert assert_equal_to_cpu(clips / "h264.mp4", backend="auto", timeout=60) == []


def test_without_its_library_the_gpus_decoder_says_what_to_install(monkeypatch):
    from videoxl.media import nvdec

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(MissingDependencyError, match=r"videoxl\[nvdec\]"):
        nvdec.load_nvdec(torch.device("cuda"))


def test_a_stream_that_is_left_early_leaves_no_thread(clips, nvdec):
    nvdec()
    before = threading.active_count()
    with open_video(clips / "h264.mp4", PROCESSOR, FrameChoice(fps=1000), "nvdec", 60, chunk=2, device=CPU) as stream:
        next(iter(stream))
    for _ in range(100):
        if threading.active_count() <= before:
            break
        threading.Event().wait(0.05)
    assert threading.active_count() <= before


@pytest.mark.parametrize("codec", ["libx265", "libx264"])
def test_frames_that_refer_across_a_keyframe_are_right(tmp_path, nvdec, codec):
    options = {"x264-params": "open-gop=1:bframes=3:b-pyramid=normal:scenecut=0"} if codec == "libx264" else {}
    path = write_video(tmp_path / "open.mp4", 90, codec=codec, encoder_options=options)
    nvdec()
    notes = assert_equal_to_cpu(path, timeout=60, workers=2)
    if codec == "libx265":
        assert notes == []
    assert_equal_to_cpu(path, FrameChoice(num_frames=11), timeout=60)


def test_what_neither_decodes_is_left_out_and_counted(clips, tmp_path, nvdec):
    """The chosen part begins in a group of which nothing can be decoded."""
    path = zeroed(clips / "h264.mkv", tmp_path / "zeroed.mkv", 24, 36)
    nvdec()
    choice = FrameChoice(fps=1000, start=0.97)
    expected, numbers, said = read(path, choice, "pyav", timeout=20, workers=1)
    frames, found, notes = read(path, choice, "nvdec", timeout=20, workers=1)
    assert found == numbers
    np.testing.assert_array_equal(frames, expected)
    assert said[-1] == notes[-1] and "cannot be decoded" in notes[-1]


def zeroed(source, target, first: int, stop: int):
    """A copy without content in the packets `first` to `stop`."""
    data = bytearray(source.read_bytes())
    with av.open(str(source)) as container:
        for number, packet in enumerate(container.demux(video=0)):
            content = bytes(packet)
            if first <= number < stop and len(content) > 16:
                place = data.find(content)
                data[place + 4 : place + len(content)] = bytes(len(content) - 4)
    target.write_bytes(data)
    return target


def test_a_long_part_that_is_given_back_while_the_cpu_is_ahead(tmp_path, nvdec):
    path = write_video(tmp_path / "long.mp4", 900, gop=300, size=(64, 48), encoder_options={"sc_threshold": "0"})
    with av.open(str(path)) as container:
        step = int(1 / (25 * container.streams.video[0].time_base))
    nvdec(gives=lambda frame: frame.pts < 20 * step or 300 * step <= frame.pts < 310 * step)
    notes = assert_equal_to_cpu(path, timeout=20, workers=1)
    assert any("by the CPU" in note for note in notes)


def test_an_error_of_the_only_process_is_said(clips, nvdec, monkeypatch):
    def receive(process, timeout):
        message = whole(process, timeout)
        if message[0].get("part") and message[0]["kind"] == "frame":
            raise VideoError("the process fell over")
        return message

    whole = DecoderProcess.receive
    monkeypatch.setattr(DecoderProcess, "receive", receive)
    nvdec(gives=lambda frame: frame.pts == 0)
    with pytest.raises(VideoError, match="fell over"):
        read(clips / "h264.mp4", timeout=30, workers=1)


def test_an_unexpected_error_of_the_gpu_leaves_the_file_to_the_cpu(clips, nvdec, monkeypatch):
    def fail(own, expected):
        raise MemoryError("no room")

    monkeypatch.setattr("videoxl.media.gpu_decoders._difference", fail)
    nvdec()
    notes = assert_equal_to_cpu(clips / "h264.mp4", timeout=30, workers=2)
    assert any("no room" in note for note in notes)


def test_colours_that_change_on_the_way_are_the_cpus(clips, tmp_path, nvdec):
    parts = []
    for name, matrix in (("a.ts", "bt709"), ("b.ts", "smpte170m")):
        options = {"x264-params": f"colormatrix={matrix}"}
        parts.append(write_video(tmp_path / name, 50, encoder_options=options).read_bytes())
    path = tmp_path / "joined.ts"
    path.write_bytes(b"".join(parts))
    nvdec()
    assert_equal_to_cpu(path, timeout=30, workers=2)


@pytest.mark.parametrize(("width", "aspect"), [(722, "3/4"), (320, "4/3"), (726, "3/4")])
def test_the_stored_size_counts(tmp_path, nvdec, width, aspect):
    path = tmp_path / "film.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = width, 240, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(aspect)
        for number in range(12):
            frame = av.VideoFrame.from_ndarray(np.full((240, width, 3), number * 20, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    module = nvdec()
    assert assert_equal_to_cpu(path) == []
    assert module.packets


def test_closing_ends_the_decoders_within_a_part(tmp_path, nvdec):
    path = write_video(tmp_path / "long.mp4", 900, gop=900, size=(64, 48), encoder_options={"sc_threshold": "0"})
    module = nvdec(change=lambda frame: time.sleep(0.005) or frame)
    with open_video(path, PROCESSOR, FrameChoice(fps=1000), "nvdec", 60, chunk=2, device=CPU) as stream:
        next(iter(stream))
    time.sleep(0.5)
    packets = module.packets
    time.sleep(0.5)
    assert module.packets <= packets + 2 < 600


def test_a_decoder_that_gives_next_to_nothing_is_left_alone(tmp_path, nvdec):
    path = write_video(tmp_path / "many.mp4", 200)
    nvdec(gives=lambda frame: frame.pts == 0)
    notes = assert_equal_to_cpu(path, timeout=60, workers=2)
    assert any("does not give most of its frames" in note for note in notes)


def test_which_h264_packets_others_refer_to():
    start = b"\0\0\0\1"
    settings = start + b"\x67settings" + start + b"\x68more"
    assert is_unreferenced(start + b"\x01slice")
    assert is_unreferenced(start + b"\x06words" + start + b"\x01slice")
    assert not is_unreferenced(settings + start + b"\x65slice")
    assert not is_unreferenced(start + b"\x41slice")
    assert not is_unreferenced(b"")
    assert not is_unreferenced(settings)
    assert is_idr(settings + start + b"\x65slice")
    assert not is_idr(start + b"\x41slice") and not is_idr(settings) and not is_idr(b"")


@pytest.mark.skipif(
    not torch.cuda.is_available() or importlib.util.find_spec("PyNvVideoCodec") is None,
    reason="needs an NVIDIA GPU and PyNvVideoCodec",
)
@pytest.mark.parametrize("name", DECODED)
@pytest.mark.parametrize("fps", [3, 1000])
def test_the_gpu_gives_the_frames_of_the_cpu(clips, name, fps):
    expected, numbers, _ = read(clips / name, FrameChoice(fps=fps), "pyav")
    stream = open_video(clips / name, PROCESSOR, FrameChoice(fps=fps), "nvdec", device=torch.device("cuda:0"))
    with stream:
        chunks = list(stream)
    assert [number for chunk in chunks for number in chunk.indices] == numbers
    frames = np.concatenate([torch.as_tensor(chunk.frames).cpu().numpy() for chunk in chunks])
    assert np.abs(frames.astype(int) - expected).max() <= ROUNDING
    assert stream.notes == [] or "cannot decode av1" in stream.notes[0]  # not every GPU can
