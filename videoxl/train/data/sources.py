"""Data sources by scheme: `--data_path synth:gpu/clips` is the data set `gpu/clips` of the source `synth`.

A path without a scheme names records (`records.py`). A source comes from an entry point of the group
`videoxl.data_sources`, or from a program that registers it.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset

from videoxl.errors import DataError
from videoxl.model.configuration import VideoXLConfig
from videoxl.model.loss import LabelHook
from videoxl.train.data.plans import SamplePlan
from videoxl.utils.registry import Registry

_SCHEME = re.compile(r"^([a-z][a-z0-9_]+):(.*)$")


@dataclass(frozen=True)
class SourceContext:
    """Facts about a run that a source may need.

    Attributes:
        num_patches: patches of one view in the tower's output. image_size: side of the tower's input in pixels.
    """

    tokenizer: object
    config: VideoXLConfig
    num_patches: int
    image_size: int
    seed: int


class StreamedDataset(Dataset, ABC):
    """A data set that is generated, not read from records; a subclass returns `Sample`s for (epoch, index).

    Attributes:
        plans: the shape of each sample. batches: indices of each step's samples, in order.
        class_names: names of each attribute's classes, for class tasks.
        label_hook: applied to logits and labels before the loss; None: labels are token ids.
        unreadable, too_long: samples left out, as in `VideoXLDataset`.
    """

    plans: list[SamplePlan]
    batches: list[list[int]]
    class_names: dict[str, list[str]]
    label_hook: LabelHook | None = None
    unreadable: Sequence[tuple[str, str]] = ()
    too_long: Sequence[tuple[str, int]] = ()


class DataSource(ABC):
    """A kind of data set.

    Args:
        name: text after the scheme. Raises `DataError` for an unknown name.
    """

    @abstractmethod
    def __init__(self, name: str): ...

    @abstractmethod
    def dataset(self, context: SourceContext) -> StreamedDataset:
        """The data set for one run."""


DATA_SOURCES: Registry[type[DataSource]] = Registry("data source", "videoxl.data_sources", error=DataError)


def find_source(path: str) -> DataSource | None:
    """The source of a path's scheme; None if the path has no scheme. Raises `DataError` for an unknown scheme."""
    match = _SCHEME.match(path)
    if match is None or Path(path).exists():
        return None
    return DATA_SOURCES.get(match.group(1))(match.group(2))


class LazyFrames(Protocol):
    """Frames of several visual inputs that are not drawn yet; iterates over the inputs' numbers to draw from.

    Attributes:
        counts: frames of each input.
    """

    counts: list[int]

    def __iter__(self) -> Iterator[Tensor]: ...

    def draw(self, device: torch.device) -> Tensor:
        """uint8 [N, S, S, 3], the frames of all inputs in order."""

    def chunks(self, num_frames: int) -> Iterator[LazyFrames]:
        """The same frames, at most `num_frames` at a time."""
