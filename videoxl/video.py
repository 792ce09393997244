"""Video input under the import path of the quick start; defined in `videoxl.media`."""

from videoxl.errors import VideoWarning
from videoxl.media.choice import FrameChoice
from videoxl.media.stream import CHUNK, FrameChunk, FrameStream, open_video, probe_video
from videoxl.media.subtitles import SubtitleLine, read_subtitles

__all__ = [
    "CHUNK",
    "FrameChoice",
    "FrameChunk",
    "FrameStream",
    "SubtitleLine",
    "VideoWarning",
    "open_video",
    "probe_video",
    "read_subtitles",
]
