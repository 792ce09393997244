"""Puts subtitles into a question: the lines that belong to the frames, with their times."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from videoxl.errors import PromptError, SubtitleError
from videoxl.media.subtitles import SubtitleLine, read_subtitles
from videoxl.model.memory import VideoMemory
from videoxl.session.answer import FrameTime
from videoxl.session.sources import is_memory, is_picture

OWN = "own"
"""In place of a file: the text stream of the video itself."""


def find_subtitles(subtitles: Any, sources: Sequence[Any], question: Any) -> list[SubtitleLine]:
    """The lines that a user means.

    Args:
        subtitles: a file, `own`, or lines.

    Raises:
        PromptError: not exactly one video to which they belong, or a prompt of another template.
        SubtitleError: a file that has none.
    """
    if not isinstance(question, str):
        raise PromptError("subtitles go into a question; into a prompt of another template, put them yourself")
    films = [source for source in sources if is_memory(source) or not is_picture(source)]
    if len(films) != 1:
        raise PromptError(f"subtitles belong to one video; {len(films)} were given")
    if isinstance(subtitles, (list, tuple)):
        wrong = [line for line in subtitles if not isinstance(line, SubtitleLine)]
        if wrong:
            raise PromptError(f"a line of subtitles is a SubtitleLine; got a {type(wrong[0]).__name__}")
        return sorted(subtitles, key=lambda line: line.start)
    if not isinstance(subtitles, (str, Path)):
        raise PromptError(f"subtitles are a file, 'own' or lines; got a {type(subtitles).__name__}")
    if str(subtitles) != OWN:
        return read_subtitles(subtitles)
    (film,) = films
    path = film.source.get("path") if isinstance(film, VideoMemory) else film
    if is_memory(path) or not isinstance(path, (str, Path)):
        raise SubtitleError("a memory does not hold the subtitles of its video; give the video's file as subtitles")
    return read_subtitles(path)


def with_subtitles(question: str, lines: Sequence[SubtitleLine], frames: Sequence[FrameTime]) -> tuple[str, str]:
    """The question behind the lines that are shown while the frames are, and a note about them."""
    times = [frame.second for frame in frames if not math.isnan(frame.second)]
    if not times:
        raise PromptError("the frames of this memory have no times, so no subtitles can be found for them")
    step = (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else 1.0
    shown = [line for line in lines if line.end >= times[0] and line.start <= times[-1] + step]
    note = f"{len(shown)} of {len(lines)} lines of subtitles are in the prompt"
    if not shown:
        return question, note
    texts = [f"[{_clock(line.start)}] {line.text}" for line in shown]
    return "\n".join(["This video's subtitles are listed below:", *texts, question]), note


def _clock(seconds: float) -> str:
    """83.5 -> 1:23."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
