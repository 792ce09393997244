"""Needles: pictures, each with a question in the published form.

A file of questions holds three lists of equal length: `retrieval_question`, `answer` (a letter) and `needle` (the
picture's file name).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from videoxl.chat import PromptText, question_prompt
from videoxl.errors import DataError
from videoxl.media.pictures import load_picture
from videoxl.media.pixels import VideoXLImageProcessor
from videoxl.utils.digest import digest_all
from videoxl.utils.files import read_json

KEYS = ("retrieval_question", "answer", "needle")


@dataclass(frozen=True)
class Needle:
    """One picture and the question about it."""

    question: str
    answer: str
    picture: Path

    @property
    def prompt(self) -> PromptText:
        """As published: the question directly after the video, and the beginning of the answer."""
        return question_prompt(self.question, separator="", answer="Best option:(")

    def is_found(self, response: str) -> bool:
        """The published rule: the answer is in the text before the first closing parenthesis."""
        return self.answer in response.split(")")[0]

    def pixels(self, processor: VideoXLImageProcessor) -> Tensor:
        """uint8 [1, S, S, 3]."""
        return torch.as_tensor(processor.resize(load_picture(self.picture)))


def needles_digest(needles: Sequence[Needle]) -> str:
    """Digest (16 hex digits) of all questions, answers and pictures."""
    return digest_all(
        part
        for needle in needles
        for part in (json.dumps([needle.question, needle.answer]), needle.picture.read_bytes())
    )


def load_needles(questions: Path, folder: Path) -> list[Needle]:
    """Needles in the order of the file.

    Raises:
        DataError: a missing file, list or picture, lists of unequal length, or entries that are not text.
    """
    stored = read_json(questions, "the needles' questions")
    missing = [key for key in KEYS if not isinstance(stored, dict) or not isinstance(stored.get(key), list)]
    if missing:
        raise DataError(f"{questions} lacks the list(s) {', '.join(missing)}")
    sizes = {key: len(stored[key]) for key in KEYS}
    if len(set(sizes.values())) != 1 or not sizes[KEYS[0]]:
        raise DataError(f"{questions}: its lists must be equally long and not empty; they have {sizes} entries")
    odd = [each for key in KEYS for each in stored[key] if not isinstance(each, str) or not each]
    if odd:
        raise DataError(f"{questions}: {odd[0]!r} stands where a text must; every question has an answer and a picture")
    needles = [
        Needle(question, answer, folder / name) for question, answer, name in zip(*(stored[key] for key in KEYS))
    ]
    absent = [needle.picture.name for needle in needles if not needle.picture.is_file()]
    if absent:
        raise DataError(f"needle pictures are not in {folder}: {', '.join(absent)}; give --needle_dir")
    return needles
