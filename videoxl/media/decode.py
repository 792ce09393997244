"""From an indexed file to small frames: one decoder and the exact resize, in the decoder process too (no torch)."""

from __future__ import annotations

from collections.abc import Sequence

from videoxl.media.decoders import read_frames
from videoxl.media.decoders.base import Frames
from videoxl.media.info import VideoIndex
from videoxl.media.resize import resize_and_crop_frame
from videoxl.utils.read_ahead import ReadAhead

DECODED_AHEAD = 4  # full frames, 25 MB at 1920 x 1080


def decode_resized(
    index: VideoIndex, indices: Sequence[int], backend: str, side: int, decoder_scaler: bool, stored_shape: bool = False
) -> Frames:
    """(frame number, uint8 [S, S, 3]) of chosen frames; the next ones are decoded while one is resized."""
    frames = read_frames(index, indices, backend, side if decoder_scaler else None)
    stretch = (1.0, 1.0) if stored_shape else index.info.stretch()
    ahead = ReadAhead(frames, DECODED_AHEAD)
    try:
        for number, frame in ahead:
            yield number, resize_and_crop_frame(frame, side, stretch)
    finally:
        ahead.close()
