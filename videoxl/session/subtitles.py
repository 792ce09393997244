"""Puts subtitles into a question: the lines that belong to the frames, with their times."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from videoxl.errors import PromptError, SubtitleError
from videoxl.media.subtitles import SubtitleLine, read_subtitles
from videoxl.session.answer import FrameTime
from videoxl.session.sources import is_memory, is_picture
from videoxl.utils.numbers import is_number

_MOST_LETTERS = 400_000  # about 100,000 tokens; five hours of speech
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
        for line in subtitles:
            _check_line(line)
        return sorted(subtitles, key=lambda line: line.start)
    if not isinstance(subtitles, (str, Path)):
        raise PromptError(f"subtitles are a file, 'own' or lines; got a {type(subtitles).__name__}")
    if str(subtitles) != OWN:
        return read_subtitles(subtitles)
    (film,) = films
    if is_memory(film):
        raise SubtitleError("a memory does not hold the subtitles of its video; give the video's file as subtitles")
    return read_subtitles(film)


def _check_line(line: Any) -> None:
    if not isinstance(line, SubtitleLine):
        raise PromptError(f"a line of subtitles is a SubtitleLine; got a {type(line).__name__}")
    for name in ("start", "end"):
        value = getattr(line, name)
        if not is_number(value) or not math.isfinite(value):
            raise PromptError(f"{name} of a line of subtitles is {value!r}; it must be a number of seconds")
    if not isinstance(line.text, str):
        raise PromptError(f"the text of a line of subtitles is {line.text!r}; it must be a text")


def with_subtitles(question: str, lines: Sequence[SubtitleLine], frames: Sequence[FrameTime]) -> tuple[str, str]:
    """The question behind the lines that are shown while the frames are, and a note about them."""
    times = [frame.second for frame in frames if not math.isnan(frame.second)]
    if not times:
        raise PromptError("the frames of this memory have no times, so no subtitles can be found for them")
    step = (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else 1.0
    shown = [line for line in lines if line.end >= times[0] and line.start <= times[-1] + step]
    note = f"{len(shown)} of {len(lines)} lines of subtitles are in the prompt"
    letters = sum(len(line.text) for line in shown)
    if letters > _MOST_LETTERS:
        raise PromptError(
            f"the subtitles have {letters:,} letters while the frames are shown; at most {_MOST_LETTERS:,} go into a "
            "prompt. Choose a shorter part with start and end"
        )
    if not shown:
        return question, note
    texts = [f"[{_clock(line.start)}] {line.text}" for line in shown]
    return "\n".join(["This video's subtitles are listed below:", *texts, question]), note


def _clock(seconds: float) -> str:
    """83.5 -> 1:23."""
    minutes, rest = divmod(max(int(seconds), 0), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
