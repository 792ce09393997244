"""PyNvVideoCodec's interface with FFmpeg behind it: tests of the GPU's decoder run without one."""

# ruff: noqa: N802  (its names)

from __future__ import annotations

import ctypes
from types import SimpleNamespace

import av
import numpy as np
import torch

NAMES = {"H264": "h264", "HEVC": "hevc", "VP9": "vp9", "AV1": "libdav1d"}


class Frame:
    def __init__(self, frame: av.VideoFrame):
        planes = []
        for plane in frame.reformat(format="nv12").planes:
            rows = np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)
            planes.append(rows[:, : frame.width])
        self.surface = torch.from_numpy(np.concatenate(planes))
        self.time = frame.pts

    def getPTS(self) -> int:
        return self.time

    def __dlpack__(self, **options):
        return self.surface.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.surface.__dlpack_device__()


class Decoder:
    def __init__(self, module: SoftwareNvdec, codec: str):
        self.module, self.codec = module, codec
        self.context = self.new()

    def new(self):
        return av.CodecContext.create(NAMES[self.codec], "r")

    def Decode(self, packet) -> list[Frame]:
        if packet.bsl:
            self.module.packets += 1
            data = av.Packet(ctypes.string_at(packet.bsl_data, packet.bsl))
            data.pts = packet.pts
            frames = self.context.decode(data)
        else:
            frames = self.context.decode(None)
            self.context = self.new()
        return [self.module.change(Frame(frame)) for frame in frames if self.module.gives(frame)]


class SoftwareNvdec:
    """In the module's place.

    Args:
        engines: units that it says it has. gives: whether a decoded frame is handed out. change: what is done to it.
    """

    def __init__(self, engines=2, gives=lambda frame: True, change=lambda frame: frame):
        self.cudaVideoCodec = SimpleNamespace(**{name: name for name in NAMES})
        self.cudaVideoChromaFormat = SimpleNamespace(YUV420=1)
        self.engines, self.gives, self.change = engines, gives, change
        self.packets = 0
        self.decoders = 0

    def GetDecoderCaps(self, **_) -> dict:
        sizes = {"width_min": 16, "height_min": 16, "width_max": 4096, "height_max": 4096}
        return {"num_decoder_engines": self.engines, "supported": 1, **sizes}

    def PacketData(self):
        return SimpleNamespace(bsl=0, bsl_data=0, pts=0)

    def CreateDecoder(self, codec: str, **_) -> Decoder:
        self.decoders += 1
        return Decoder(self, codec)
