"""Recognises and checks a user's sources (videos, pictures, memories) before anything is loaded or decoded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import GenerationConfig, GenerationMixin

from videoxl.cache.memory_file import is_memory_file
from videoxl.errors import PromptError, VideoError
from videoxl.media.choice import FrameChoice
from videoxl.media.fetch import fetch_video, is_url
from videoxl.media.pictures import is_picture_file
from videoxl.media.stream import FrameStream
from videoxl.model.memory import VideoMemory
from videoxl.model.visual import Progress
from videoxl.session.answer import FrameTime
from videoxl.utils.numbers import is_number, is_whole_number

# Options of `VideoXL.read` that `ask` and its kin take too.
INTERVAL = ("frames", "fps", "max_frames", "start", "end", "sampling", "stored_shape")
CHOICE = (*INTERVAL, "choice")
READING = (*CHOICE, "ratio", "compressor", "backend", "timeout", "progress")
DEFAULT_FRAMES = 128


def as_sources(source: Any, fetch: Callable[[str], Path] = fetch_video) -> list[Any]:
    """One source or several as a list; each is a `VideoMemory`, a picture, or the path of a file.

    Args:
        fetch: how a URL becomes a file.

    Raises:
        VideoError: the file does not exist or is a folder. PromptError: a type that is not supported, or a memory
            after the first source.
    """
    several = list(source) if isinstance(source, (list, tuple)) else [] if source is None else [source]
    found = [_checked(fetch(each) if is_url(each) else each) for each in several]
    late = [each for each in found[1:] if is_memory(each)]
    if late:
        raise PromptError(
            "a memory has read the text before its video, so it must come first, and there can be one; give the other "
            "videos as files"
        )
    return found


def is_memory(source: Any) -> bool:
    """Whether it is a memory: a `VideoMemory` or a memory file."""
    return isinstance(source, VideoMemory) or (isinstance(source, Path) and is_memory_file(source))


def is_picture(source: Any) -> bool:
    return not isinstance(source, (VideoMemory, Path)) or (isinstance(source, Path) and is_picture_file(source))


def is_video(source: Any) -> bool:
    return not is_memory(source) and not is_picture(source)


def check_choice(sources: Sequence[Any], frames: dict[str, Any], method: dict[str, Any] | None = None) -> None:
    """Raise `PromptError` for an option that applies to none of the sources.

    Args:
        frames: options that choose a video's frames, by name; a value of None means not given.
        method: options that choose the compression (`ratio`, `compressor`), in the same form.
    """
    chosen = [name for name, value in frames.items() if value is not None]
    methods = [name for name, value in (method or {}).items() if value is not None]
    if any(map(is_memory, sources)) and chosen + methods:
        raise PromptError(f"a memory has its frames and its ratio already; leave {', '.join(chosen + methods)} out")
    if chosen and not any(map(is_video, sources)):
        raise PromptError(f"frames are chosen from videos, and there is none; leave {', '.join(chosen)} out")
    if methods and not sources:
        raise PromptError(f"there is nothing to compress; leave {', '.join(methods)} out")


def check_options(options: Mapping[str, Any], reading: Sequence[str]) -> None:
    """Raise `PromptError` for an option that is neither for reading (`reading`, `system`) nor for asking."""
    known = {
        *reading,
        "system",
        "seed",
        "subtitles",
        *GenerationConfig().to_dict(),
        *signature(GenerationMixin.generate).parameters,
    }
    known -= {"self", "inputs", "kwargs", "return_dict_in_generate"}  # `VideoXL` returns an `Answer` instead
    for name in options:
        if name not in known:
            near = get_close_matches(name, sorted(known), n=1)
            hint = f"; did you mean {near[0]}?" if near else "; see VideoXL.read and transformers' generate"
            raise PromptError(f"option {name!r} is not known{hint}")


def check_generation(options: Mapping[str, Any]) -> None:
    """Raise `PromptError` for invalid generation settings, before anything is read."""
    for name, (is_kind, least, most) in _RANGES.items():
        value = options.get(name)
        if value is None and name in options and name != "seed":
            raise PromptError(f"{name} is None; leave it out for the default")
        if value is None:
            continue
        if not is_kind(value) or not least <= value <= most:
            kind = "a whole number" if is_kind is is_whole_number else "a number"
            raise PromptError(f"{name} is {value!r}; it must be {kind} from {least} to {most}")


_RANGES: dict[str, tuple[Callable[[object], bool], float, float]] = {
    "max_new_tokens": (is_whole_number, 1, 1 << 24),
    "temperature": (is_number, 0, 1e6),
    "top_p": (is_number, 0, 1),
    "seed": (is_whole_number, 0, (1 << 64) - 1),
}


def _checked(source: Any) -> Any:
    if isinstance(source, (VideoMemory, Image.Image)):
        return source
    if isinstance(source, np.ndarray):
        if source.ndim not in (2, 3) or source.dtype != np.uint8:
            raise PromptError(
                f"a picture must be uint8 [height, width, 3]; got {source.dtype} {list(source.shape)}. Give a video as "
                "a file"
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


def the_choice(choice: FrameChoice | None, fields: dict[str, Any]) -> FrameChoice | None:
    """The given choice, or one built from its `fields`. Raises `PromptError` if both are given."""
    if choice is None:
        return frame_choice(**fields)
    named = [name for name, value in fields.items() if value is not None]
    if named:
        raise PromptError(f"choice says which frames to read; leave {', '.join(named)} out")
    return choice


def announce(progress: Progress | None, stream: FrameStream) -> None:
    """Tell a progress bar how many frames will come, if it wants to know."""
    start = getattr(progress, "start", None)
    if start is not None:
        start(stream.num_frames)


def all_pixels(stream: FrameStream, progress: Progress | None = None) -> tuple[Tensor, list[FrameTime]]:
    """Pixel values [F, 3, S, S] float32 on the CPU of all frames of a stream, and their numbers and times."""
    announce(progress, stream)
    parts: list[Tensor] = []
    frames: list[FrameTime] = []
    for chunk in stream:
        parts.append(chunk.pixels(torch.device("cpu"), torch.float32))
        frames += map(FrameTime, chunk.indices, chunk.timestamps)
        if progress is not None:
            progress(len(chunk.frames))
    return torch.cat(parts), frames


def frame_choice(
    frames: int | None = None,
    fps: float | None = None,
    max_frames: int | None = None,
    start: float | None = None,
    end: float | None = None,
    sampling: str | None = None,
    stored_shape: bool | None = None,
) -> FrameChoice | None:
    """The requested frames; None if no option is set."""
    if all(each is None for each in (frames, fps, max_frames, start, end, sampling, stored_shape)):
        return None
    if frames is None and fps is None:
        frames = DEFAULT_FRAMES
    return FrameChoice(
        frames, fps, max_frames, start or 0.0, end, sampling=sampling or "uniform", stored_shape=bool(stored_shape)
    )
