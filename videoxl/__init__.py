"""Video-XL: an extra-long video language model.

    from videoxl import VideoXL

    model = VideoXL.from_pretrained("path/to/VideoXL_weight_8")
    print(model.ask("film.mp4", "What is advertised?", frames=2048))

Importing the package is cheap: each name below is imported on first use. The import registers `llava_qwen` with
transformers' auto classes.
"""

import logging
from typing import TYPE_CHECKING

from videoxl.auto_classes import announce
from videoxl.version import __version__

if TYPE_CHECKING:
    from videoxl.media.choice import FrameChoice
    from videoxl.model.configuration import VideoXLConfig
    from videoxl.model.memory import VideoMemory
    from videoxl.model.modeling import LlavaQwenForCausalLM
    from videoxl.session import Answer, VideoXL

# On import bitsandbytes recommends a package that it can do without; that looks like a failed installation.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

_PLACES = {
    "Answer": "videoxl.session",
    "FrameChoice": "videoxl.media.choice",
    "LlavaQwenForCausalLM": "videoxl.model.modeling",
    "VideoMemory": "videoxl.model.memory",
    "VideoXL": "videoxl.session",
    "VideoXLConfig": "videoxl.model.configuration",
}
__all__ = [
    "Answer",
    "FrameChoice",
    "LlavaQwenForCausalLM",
    "VideoMemory",
    "VideoXL",
    "VideoXLConfig",
    "__version__",
]


def __getattr__(name: str):
    if name not in _PLACES:
        raise AttributeError(f"module 'videoxl' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return __all__


announce()
