"""The GPU's video decoder (NVDEC) through PyNvVideoCodec: reads parts of a file, frames stay on the GPU.

Packets come from the same container as on the CPU; those that no wanted frame refers to are dropped before the decoder.
Colours and the resize are the CPU's to the bit. What differs from it (damage, fields, more than 8 bits) is left to it.

Shape letters: H height, W width as stored, S side of the model's input.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections import deque
from collections.abc import Iterator
from itertools import groupby
from types import ModuleType
from typing import Any

import av
import numpy as np
import torch
from av.bitstream import BitStreamFilterContext
from torch import Tensor

from videoxl.errors import MissingDependencyError, VideoError, one_line
from videoxl.media.container import items_from, open_container, pick_stream, read_packets
from videoxl.media.info import VideoInfo
from videoxl.media.parts import Part
from videoxl.media.pixels import resize_fixed_point
from videoxl.media.resize import is_scaled_whole, scaled_size
from videoxl.media.yuv import yuv420_to_rgb

# Codec -> (PyNvVideoCodec's name, the filter that brings its packets into the decoder's form).
_CODECS = {
    "h264": ("H264", "h264_mp4toannexb"),
    "hevc": ("HEVC", "hevc_mp4toannexb"),
    "vp9": ("VP9", None),
    "av1": ("AV1", None),
}
_PIXEL_FORMATS = ("yuv420p", "yuvj420p")
_MOST_UNITS = 8
_SEQUENCE_SETS = {"h264": (0, 7), "hevc": (1, 33)}  # codec -> how far the kind is shifted, and the kind
_IDR = 5  # kind of an H.264 slice; the kinds below are other slices


def load_nvdec(device: torch.device) -> ModuleType:
    """PyNvVideoCodec. Raises `MissingDependencyError` or `VideoError` where it, a GPU or its driver is missing."""
    if not torch.cuda.is_available():
        raise VideoError("nvdec needs an NVIDIA GPU, and this machine has none")
    if device.type != "cuda":
        raise VideoError(f"nvdec leaves frames on an NVIDIA GPU, and the model is on the {device.type}")
    try:
        import PyNvVideoCodec
    except ImportError as error:
        raise MissingDependencyError(
            f"nvdec needs PyNvVideoCodec: pip install 'videoxl[nvdec]' ({one_line(error)})"
        ) from error
    except Exception as error:  # a driver without the video libraries: containers need the capability `video`
        raise VideoError(f"the GPU's decoder cannot be used: {one_line(error)}") from error
    return PyNvVideoCodec


def why_not(info: VideoInfo, side: int, scaler: bool) -> str | None:
    """Why the GPU's decoder does not read this file; None where it may."""
    height, width = info.stored_height, info.stored_width
    if info.codec not in _CODECS:
        return f"its codec is {info.codec}"
    if info.pixel_format not in _PIXEL_FORMATS:
        return f"its pixels are stored as {info.pixel_format}"
    if info.interlaced:
        return "it is interlaced"
    if info.damage or height % 2 or width % 2:
        return "it is damaged" if info.damage else f"its frames have {width} x {height} pixels"
    if scaler or not is_scaled_whole(*scaled_size(height, width, side, (1.0, info.pixel_aspect)), side):
        return "the decoder's own scaler was asked for" if scaler else "its frames are nearly a line"
    return None


def decoder_units(nvdec: ModuleType, info: VideoInfo, device: torch.device) -> int:
    """How many decoders work at once; 0 where the GPU cannot decode such a file (8 bits, 4:2:0)."""
    codec = getattr(nvdec.cudaVideoCodec, _CODECS[info.codec][0])
    able = nvdec.GetDecoderCaps(gpuid=device.index or 0, codec=codec)
    fits = able["width_min"] <= info.stored_width <= able["width_max"]
    fits &= able["height_min"] <= info.stored_height <= able["height_max"]
    return min(int(able["num_decoder_engines"]), _MOST_UNITS) if able["supported"] and fits else 0


class NvdecReader:
    """One decoder of the GPU, with a CUDA stream of its own. For one thread at a time.

    Attributes:
        settings: the stream's parameter sets where it was first read. Where they change, colours may: the CPU knows.
    """

    def __init__(
        self, nvdec: ModuleType, info: VideoInfo, device: torch.device, side: int, stored_shape: bool,
        settings: bytes | None = None,
    ):  # fmt: skip
        self.settings = settings
        self._nvdec, self._info, self._side = nvdec, info, side
        self._stretch = (1.0, 1.0) if stored_shape else info.stretch()
        name, filter_name = _CODECS[info.codec]
        self._container: Any = open_container(info.path)
        self._stream: Any = pick_stream(self._container, info.path)
        self._filter = BitStreamFilterContext(filter_name, self._stream) if filter_name else None
        self._lane = _Lane(device)
        with self._lane:
            self._decoder = nvdec.CreateDecoder(
                gpuid=device.index or 0, codec=getattr(nvdec.cudaVideoCodec, name), cudacontext=self._lane.context,
                cudastream=self._lane.stream, usedevicememory=True,
            )  # fmt: skip

    def read(self, part: Part) -> Iterator[tuple[int, Tensor]]:
        """(frame number, uint8 [S, S, 3] on the GPU), in order, up to the first frame that does not come."""
        numbers = iter(part.numbers)
        for keyframe, group in groupby(zip(part.keyframes, part.pts), key=lambda each: each[0]):
            wanted = deque(time for _, time in group)
            for time, surface in self._surfaces(keyframe, list(wanted)):
                if wanted and time > wanted[0]:
                    return
                if wanted and time == wanted[0]:
                    wanted.popleft()
                    yield next(numbers), self._shown(surface)
            if wanted:
                return

    def __enter__(self) -> NvdecReader:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        self._container.close()

    def _surfaces(self, keyframe: int, wanted: list[int]) -> Iterator[tuple[int, Any]]:
        """(time, frame) as the decoder gives them, in the order in which they are shown, from a keyframe on.

        A frame is valid until the next one is asked for.
        """
        if self._filter is not None:
            self._filter.flush()
        missing = set(wanted)
        begin: int | None = None
        try:
            for packet in self._packets_from(keyframe):
                if packet.size == 0 or (packet.dts is not None and packet.dts > wanted[-1]):
                    break
                for each in (packet,) if self._filter is None else self._filter.filter(packet):
                    data, time = bytes(each), each.pts
                    if begin is None:
                        if self._info.codec == "h264" and not is_idr(data):
                            return  # frames before it may refer across it: the CPU knows which ones
                        begin = time
                    if not self._has_same_settings(data):
                        return
                    if self._is_needed(data, time, begin, missing):
                        missing.discard(time)
                        yield from self._decode(data, time)
                if not missing:
                    break
            yield from self._decode(b"", None)
        finally:
            for _ in self._decode(b"", None):  # whoever stopped early left frames in the decoder
                pass

    def _has_same_settings(self, data: bytes) -> bool:
        found = parameter_sets(data, self._info.codec)
        if found and self.settings is None:
            self.settings = found
        return not found or found == self.settings

    def _is_needed(self, data: bytes, time: int | None, begin: int | None, missing: set[int]) -> bool:
        """Whether the decoder must see a packet."""
        if self._info.codec == "hevc" and time is not None and begin is not None and time < begin:
            return False  # it refers to frames before the keyframe; the decoder drops it, but gives its time to another
        return time in missing or not (self._info.codec == "h264" and is_unreferenced(data))

    def _packets_from(self, keyframe: int) -> Iterator[av.Packet]:
        """Packets from a keyframe on, or from an earlier one: where a seek lands after it, go back further."""
        container, stream = self._container, self._stream
        with contextlib.suppress(av.error.FFmpegError):  # what does not come is the CPU's
            # A seek may land between keyframes, and a decoder cannot begin there.
            yield from items_from(
                container, stream, keyframe, keyframe, lambda: read_packets(container, stream), _is_keyframe
            )

    def _decode(self, data: bytes, time: int | None) -> Iterator[tuple[int, Any]]:
        """Give the decoder a packet; an empty one makes it hand out what it holds."""
        packet = self._nvdec.PacketData()
        if data:
            held = np.frombuffer(data, np.uint8)
            packet.bsl_data, packet.bsl, packet.pts = held.ctypes.data, len(held), time or 0
        with self._lane:
            frames = self._decoder.Decode(packet)
        for frame in frames:
            yield frame.getPTS(), frame

    def _shown(self, decoded: Any) -> Tensor:
        """NV12 [H * 3 / 2, W] -> uint8 [S, S, 3]."""
        with self._lane:
            surface = torch.from_dlpack(decoded)
            height, width = surface.shape[0] * 2 // 3, surface.shape[1]
            luma, chroma = surface[:height], surface[height:].view(height // 2, width // 2, 2)
            frame = self._info.orientation.apply_to_tensor(
                yuv420_to_rgb(luma, chroma, self._info.matrix, self._info.full_range)
            )
            scaled = scaled_size(frame.shape[0], frame.shape[1], self._side, self._stretch)
            rows, columns = (slice((each - self._side) // 2, (each + self._side) // 2) for each in scaled)
            small = resize_fixed_point(frame[None], *scaled, rows, columns)[0].contiguous()
        self._lane.wait()
        return small


def _is_keyframe(packet: av.Packet) -> bool:
    return packet.is_keyframe


def is_unreferenced(packet: bytes) -> bool:
    """Whether no other frame refers to this one; an H.264 packet of the byte-stream form (Annex B)."""
    unit = _first_slice(packet)
    return unit is not None and not unit >> 5 & 3


def is_idr(packet: bytes) -> bool:
    """Whether nothing after this frame refers to anything before it; a packet as above."""
    unit = _first_slice(packet)
    return unit is not None and unit & 31 == _IDR


def parameter_sets(packet: bytes, codec: str) -> bytes:
    """The sequence parameter sets before the first slice, which say size and colours; empty where there are none."""
    if codec not in _SEQUENCE_SETS:
        return b""
    shift, kind = _SEQUENCE_SETS[codec]
    found = []
    at = packet.find(b"\0\0\1")
    while 0 <= at < len(packet) - 3:
        end = packet.find(b"\0\0\1", at + 3)
        unit = packet[at + 3] >> shift & (31 if codec == "h264" else 63)
        if unit == kind:
            found.append(packet[at + 3 : end if end >= 0 else None].rstrip(b"\0"))
        elif unit <= _IDR if codec == "h264" else unit < 32:  # a slice
            break
        at = end
    return b"\0".join(found)


def _first_slice(packet: bytes) -> int | None:
    """The first byte of the first slice: its kind and whether others refer to it."""
    at = packet.find(b"\0\0\1")
    while 0 <= at < len(packet) - 3:
        if 1 <= packet[at + 3] & 31 <= _IDR:
            return packet[at + 3]
        at = packet.find(b"\0\0\1", at + 3)
    return None


class _Lane:
    """A CUDA stream of its own on a device, and the context in which torch works there.

    On the CPU, where tests run with another decoder, nothing of it.
    """

    def __init__(self, device: torch.device):
        self._on_gpu = device.type == "cuda"
        self.stream = self.context = 0
        if not self._on_gpu:
            return
        # Before others: else each frame waits for the model's kernels.
        self._stream = torch.cuda.Stream(device, priority=-1)
        self.stream = self._stream.cuda_stream
        driver, context = ctypes.CDLL("libcuda.so.1"), ctypes.c_void_p()
        with torch.cuda.device(device):
            torch.zeros(1, device=device)  # in a new thread, no context is current before something is done
            driver.cuCtxGetCurrent(ctypes.byref(context))
        if not context.value:
            raise VideoError("there is no CUDA context")
        self.context = context.value

    def __enter__(self) -> None:
        if self._on_gpu:
            self._within = torch.cuda.stream(self._stream)  # of its device, too
            self._within.__enter__()

    def __exit__(self, *raised) -> None:
        if self._on_gpu:
            self._within.__exit__(*raised)

    def wait(self) -> None:
        """Until what was asked for is done."""
        if self._on_gpu:
            self._stream.synchronize()
