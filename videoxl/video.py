"""Video input under the import path of the quick start; defined in `videoxl.media`."""

from videoxl.errors import VideoWarning
from videoxl.media.choice import FrameChoice
from videoxl.media.stream import CHUNK, FrameChunk, FrameStream, open_video, probe_video

__all__ = ["CHUNK", "FrameChoice", "FrameChunk", "FrameStream", "VideoWarning", "open_video", "probe_video"]
