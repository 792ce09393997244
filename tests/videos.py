"""Test videos, encoded by PyAV: every frame carries its number, so that a test can tell which one it got."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

BITS = 12


def numbered_frame(number: int, width: int = 320, height: int = 240) -> np.ndarray:
    """uint8 [H, W, 3]: `number` as a row of black and white blocks over a moving gradient."""
    x = np.arange(width)
    frame = np.repeat(((x + 7 * number) % 200 + 20).astype(np.uint8)[None, :, None], height, axis=0)
    frame = np.ascontiguousarray(np.repeat(frame, 3, axis=2))
    for bit in range(BITS):
        block = slice(40 + bit * 20, 60 + bit * 20)
        frame[height // 2 - 20 : height // 2 + 20, block] = 255 if number >> bit & 1 else 0
    return frame


def read_number(frame: np.ndarray) -> int:
    """The number of a frame that was resized to 336 x 336 from 320 x 240 (scale 1.4, centre crop)."""
    scale, left = 336 / 240, (int(336 * 320 / 240) - 336) // 2
    row = frame[168].mean(axis=-1)
    centres = [int((50 + bit * 20) * scale) - left for bit in range(BITS)]
    return sum(int(row[centre] > 128) << bit for bit, centre in enumerate(centres))


def write_video(
    path: Path,
    frames: int,
    codec: str = "libx264",
    fps: int = 25,
    gop: int = 12,
    times=None,
    size=(320, 240),
    options=None,
    encoder_options=None,
) -> Path:
    """Encode numbered frames; `times` in seconds make the rate variable. `options`: of the container."""
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=fps, options=encoder_options or {})
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = *size, "yuv420p", gop
        if times is not None:
            stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(numbered_frame(number, *size), format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = round(times[number] * 1000), Fraction(1, 1000)
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


def write_sound(path: Path) -> Path:
    """One second of silence in an mp4, no video stream."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        for start in range(0, 16000, 1024):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 16000, start
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


def rotate_mp4(source: Path, target: Path) -> Path:
    """Copy an mp4 with a display matrix that turns it by 90 degrees clockwise: `tkhd`'s matrix is rewritten."""
    data = bytearray(source.read_bytes())
    place = data.find(b"tkhd")
    matrix = place + 4 + 40  # version and flags, times, ids, duration, reserved, layer, group, volume
    values = (0, 0x10000, 0, -0x10000 & 0xFFFFFFFF, 0, 0, 240 << 16, 0, 0x40000000)
    for index, value in enumerate(values):
        data[matrix + 4 * index : matrix + 4 * index + 4] = value.to_bytes(4, "big")
    target.write_bytes(data)
    return target


def cut(source: Path, target: Path, share: float) -> Path:
    """The first `share` of a file's bytes."""
    data = source.read_bytes()
    target.write_bytes(data[: int(len(data) * share)])
    return target
