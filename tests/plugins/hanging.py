"""A decoder that never gives a frame; free of torch, since the decoder process imports it."""

from __future__ import annotations

import time
from collections.abc import Sequence

from videoxl.media.decoders import DECODERS, VideoDecoder
from videoxl.media.info import VideoIndex


@DECODERS.register("hanging")
class Hanging(VideoDecoder):
    name = "hanging"

    def frames(self, index: VideoIndex, wanted: Sequence[int], side: int | None = None):
        time.sleep(3600)
        yield from ()
