"""The seam between a video file and its frames: an index goes in, chosen frames come out.

Shape letters: H height, W width of a frame.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence
from typing import ClassVar

import numpy as np

from videoxl.errors import VideoError
from videoxl.media.index import VideoIndex
from videoxl.utils.registry import Registry

Frames = Generator[tuple[int, np.ndarray], None, None]
"""(frame number, uint8 [H, W, 3]), ascending; to close it ends decoding."""


class VideoDecoder(ABC):
    """Decodes chosen frames of one file, one after the other.

    A decoder also runs in the decoder process, where neither torch nor the caller's script is imported: it is found
    there by its module's name. To add one, register a subclass:

        @DECODERS.register("mine")
        class MyDecoder(VideoDecoder): ...

    Attributes:
        name: what a user calls it by.
        scales: whether `frames` can bring them near the model's side itself (`side`).
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
            side: None for full frames; else, where `scales`, its own scaler brings the shorter side to this.

        Yields:
            (frame number, uint8 [H, W, 3]).

        Raises:
            VideoError: the file cannot be read. MissingDependencyError: a package is not installed.
        """

    def check_length(self, length: int, index: VideoIndex) -> None:
        """Raise `VideoError` where a decoder counts other frames than the packets are: numbers would not agree."""
        if length != index.info.num_frames:
            raise VideoError(
                f"{self.name} finds {length} frames in {index.info.path}, its packets are {index.info.num_frames}: "
                "frame numbers would not agree; use backend 'pyav'"
            )


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
    """Raise `VideoError` for a decoder that there is not, or that lacks the scaler that is asked for."""
    if scaler and not DECODERS.get(name).scales:
        able = [repr(each) for each in DECODERS.names() if DECODERS.get(each).scales]
        raise VideoError(f"the decoder's own scaler works with backend {' or '.join(able)}, not with {name!r}")
    DECODERS.get(name)


def read_frames(index: VideoIndex, wanted: Sequence[int], backend: str, scaler_side: int | None = None) -> Frames:
    """`VideoDecoder.frames` of the decoder of that name."""
    check_decoder(backend, scaler_side is not None)
    return DECODERS.get(backend)().frames(index, wanted, scaler_side)
