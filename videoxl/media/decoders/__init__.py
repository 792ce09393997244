"""Video decoders, one per file, behind `VideoDecoder`."""

from videoxl.media.decoders.base import DECODERS, VideoDecoder, check_decoder, read_frames

__all__ = ["DECODERS", "VideoDecoder", "check_decoder", "read_frames"]
