"""decord, for users who have it: unmaintained, and it may hang on damaged files (then use a timeout)."""

from __future__ import annotations

from collections.abc import Sequence

from videoxl.errors import MissingDependencyError, VideoError
from videoxl.media.decoders.base import Frames, VideoDecoder
from videoxl.media.info import VideoIndex


class DecordDecoder(VideoDecoder):
    """decord's reader, one frame at a time."""

    name = "decord"

    def frames(self, index: VideoIndex, wanted: Sequence[int], side: int | None = None) -> Frames:
        try:
            from decord import DECORDError, VideoReader, cpu
        except ImportError as error:
            raise MissingDependencyError("backend 'decord' needs decord: pip install decord") from error
        try:
            reader = VideoReader(index.info.path, ctx=cpu(0))
            self.check_length(len(reader), index)
            for number in wanted:
                yield number, reader[int(number)].asnumpy()
        except (DECORDError, RuntimeError) as error:
            raise VideoError(f"decord cannot read {index.info.path}: {str(error).splitlines()[0]}") from error
