"""torchcodec; needs FFmpeg's shared libraries on the system."""

from __future__ import annotations

from collections.abc import Sequence

from videoxl.errors import MissingDependencyError, VideoError
from videoxl.media.decoders.base import Frames, VideoDecoder
from videoxl.media.info import VideoIndex


class TorchcodecDecoder(VideoDecoder):
    """torchcodec's decoder with exact seeking; the one decoder that imports torch."""

    name = "torchcodec"

    def frames(self, index: VideoIndex, wanted: Sequence[int], side: int | None = None) -> Frames:
        try:
            from torchcodec.decoders import VideoDecoder as Decoder
        except (ImportError, RuntimeError, OSError) as error:
            raise MissingDependencyError(
                f"backend 'torchcodec' needs torchcodec and FFmpeg's shared libraries: {str(error).splitlines()[0]}"
            ) from error
        try:
            decoder = Decoder(index.info.path, dimension_order="NHWC", seek_mode="exact")
            self.check_length(len(decoder), index)
            for number in wanted:
                yield number, decoder[int(number)].numpy()
        except (RuntimeError, ValueError) as error:
            if "libtorchcodec" in str(error):  # newer versions look for FFmpeg when a file is opened
                raise MissingDependencyError(
                    "backend 'torchcodec' needs FFmpeg's shared libraries, which are not on this system"
                ) from error
            raise VideoError(f"torchcodec cannot read {index.info.path}: {str(error).splitlines()[0]}") from error
