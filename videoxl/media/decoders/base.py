"""The interface of video decoders: an index goes in, chosen frames come out.

Shape letters: H height, W width of a frame.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence
from typing import ClassVar

import numpy as np

from videoxl.errors import VideoError
from videoxl.media.info import VideoIndex
from videoxl.utils.registry import Registry

Frames = Generator[tuple[int, np.ndarray], None, None]
"""(frame number, uint8 [H, W, 3]), ascending; closing the generator ends decoding."""


class VideoDecoder(ABC):
    """Decodes chosen frames of one file, one after the other.

    A decoder also runs in the decoder process, where neither torch nor the caller's script is imported: it is found
    there by its module's name. To add one, register a subclass:

        @DECODERS.register("mine")
        class MyDecoder(VideoDecoder): ...

    Attributes:
        name: the name that users select it by.
        scales: whether `frames` can scale frames to the model's side itself (`side`).
        device: where frames are decoded.
    """

    name: ClassVar[str]
    scales: ClassVar[bool] = False
    device: ClassVar[str] = "cpu"

    @abstractmethod
    def frames(self, index: VideoIndex, wanted: Sequence[int], side: int | None = None) -> Frames:
        """Frames as they are shown (rotation applied); those that cannot be decoded are left out.

        Args:
            wanted: ascending frame numbers of `index`.
            side: None for full frames; else, where `scales`, the decoder scales the shorter side to this.

        Yields:
            (frame number, uint8 [H, W, 3]).

        Raises:
            VideoError: the file cannot be read. MissingDependencyError: a package is not installed.
        """

    def check_length(self, length: int, index: VideoIndex) -> None:
        """Raise `VideoError` if the decoder and the packets differ in the number of frames."""
        if index.info.mirrored:
            raise VideoError(f"{self.name} does not mirror the frames of {index.info.path}; use backend 'pyav'")
        if length != index.info.num_frames:
            raise VideoError(
                f"{self.name} finds {length} frames in {index.info.path}, its packets hold {index.info.num_frames}: "
                "frame numbers would not match; use backend 'pyav'"
            )


GPU_BACKENDS = ("nvdec", "auto")
"""The GPU's decoder, and both it and the CPU's where that is faster; see `videoxl.media.workers`."""

DECODERS: Registry[type[VideoDecoder]] = Registry(
    "video backend",
    "videoxl.video_decoders",
    {
        "pyav": "videoxl.media.decoders.pyav:PyAVDecoder",
        "decord": "videoxl.media.decoders.decord:DecordDecoder",
        "torchcodec": "videoxl.media.decoders.torchcodec:TorchcodecDecoder",
    },
    VideoError,
)


def check_decoder(name: str, scaler: bool = False) -> None:
    """Raise `VideoError` for an unknown decoder, or for one without a scaler where `scaler` is asked for."""
    if name in GPU_BACKENDS:  # the CPU's part of it is PyAV
        return
    if name not in DECODERS.names():
        known = ", ".join([*DECODERS.names(), *GPU_BACKENDS])
        raise VideoError(f"video backend {name!r} is not known; use {known}")
    if scaler and not DECODERS.get(name).scales:
        able = [repr(each) for each in DECODERS.names() if DECODERS.get(each).scales]
        raise VideoError(f"the decoder's own scaler works with backend {' or '.join(able)}, not with {name!r}")
    DECODERS.get(name)


def read_frames(index: VideoIndex, wanted: Sequence[int], backend: str, scaler_side: int | None = None) -> Frames:
    """`VideoDecoder.frames` of the decoder of that name."""
    check_decoder(backend, scaler_side is not None)
    return DECODERS.get(backend)().frames(index, wanted, scaler_side)
