"""`VideoXL`: load a model, read a video, ask questions about it."""

from videoxl.session.answer import Answer, FrameTime
from videoxl.session.session import VideoXL
from videoxl.session.sources import DEFAULT_FRAMES

__all__ = ["DEFAULT_FRAMES", "Answer", "FrameTime", "VideoXL"]
