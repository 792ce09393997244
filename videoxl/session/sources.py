"""What a user hands over to be asked about, told apart before anything is loaded or decoded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from transformers import GenerationConfig, GenerationMixin

from videoxl.cache.memory_file import is_memory_file
from videoxl.errors import PromptError, VideoError
from videoxl.media.choice import FrameChoice
from videoxl.media.pictures import is_picture_file
from videoxl.model.memory import VideoMemory

DEFAULT_FRAMES = 128


def as_sources(source: Any) -> list[Any]:
    """One source or several as a list; each is a `VideoMemory`, a picture, or the path of a file.

    Raises:
        VideoError: no such file, or a folder. PromptError: something that cannot be asked, or a memory that is not
            the first of several.
    """
    several = list(source) if isinstance(source, (list, tuple)) else [] if source is None else [source]
    found = [_checked(each) for each in several]
    late = [each for each in found[1:] if is_memory(each)]
    if late:
        raise PromptError(
            "a memory has read the text before its video, so it must come first, and there can be one; ask the other "
            "videos by their files"
        )
    return found


def is_memory(source: Any) -> bool:
    """Whether it is a memory, held or in a file."""
    return isinstance(source, VideoMemory) or (isinstance(source, Path) and is_memory_file(source))


def is_picture(source: Any) -> bool:
    return not isinstance(source, (VideoMemory, Path)) or (isinstance(source, Path) and is_picture_file(source))


def is_video(source: Any) -> bool:
    return not is_memory(source) and not is_picture(source)


def check_choice(sources: Sequence[Any], given: dict[str, Any]) -> None:
    """Raise `PromptError` where frames, ratio or compressor are chosen for what has them already."""
    named = [name for name, value in given.items() if value is not None]
    if named and any(map(is_memory, sources)):
        raise PromptError(f"a memory has its frames and its ratio already; leave {', '.join(named)} out")


def check_options(options: Mapping[str, Any], reading: Sequence[str]) -> None:
    """Raise `PromptError` for an option that neither reading (`reading`, `system`) nor generating knows."""
    known = {*reading, "system", "seed", *GenerationConfig().to_dict(), *signature(GenerationMixin.generate).parameters}
    for name in options:
        if name not in known:
            near = get_close_matches(name, sorted(known), n=1)
            hint = f"; did you mean {near[0]}?" if near else "; see VideoXL.read and transformers' generate"
            raise PromptError(f"option {name!r} is not known{hint}")


def _checked(source: Any) -> Any:
    if isinstance(source, (VideoMemory, Image.Image)):
        return source
    if isinstance(source, np.ndarray):
        if source.ndim not in (2, 3) or source.dtype != np.uint8:
            raise PromptError(
                f"a picture must be uint8 [height, width, 3]; got {source.dtype} {list(source.shape)}. Give a video by "
                "its file"
            )
        return source
    if not isinstance(source, (str, Path)):
        raise PromptError(f"a {type(source).__name__} cannot be asked; give a file's path, a memory or a picture")
    path = Path(source)
    if not path.exists():
        raise VideoError(f"no such video: {path}")
    if path.is_dir():
        raise VideoError(f"{path} is a folder; give a video file")
    return path


def frame_choice(
    frames: int | None = None,
    fps: float | None = None,
    max_frames: int | None = None,
    start: float | None = None,
    end: float | None = None,
) -> FrameChoice | None:
    """The frames that were asked for; None where nothing was said."""
    if (frames, fps, max_frames, start, end) == (None,) * 5:
        return None
    if frames is None and fps is None:
        frames = DEFAULT_FRAMES
    return FrameChoice(frames, fps, max_frames, start or 0.0, end)
