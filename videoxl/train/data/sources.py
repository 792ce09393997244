"""Data sources by scheme: `--data_path synth:gpu/video` is the data set that the scheme `synth` makes of `gpu/video`.

Without a scheme a path names records (`records.py`). A source is found by an entry point of the group
`videoxl.data_sources`, or registered by a program that imports it.
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
    """What a source may need to know of a run.

    Attributes:
        num_patches: of one view, as the tower makes them. image_size: side of its input.
    """

    tokenizer: object
    config: VideoXLConfig
    num_patches: int
    image_size: int
    seed: int


class StreamedDataset(Dataset, ABC):
    """A data set that is made, not read from records; a subclass gives `Sample`s for (epoch, index).

    Attributes:
        plans: the shape of each sample. batches: indices of each step's samples, in order.
        class_names: names of each attribute's classes, for the tasks on classes.
        label_hook: what becomes of its labels before the loss; None: they are ids.
        unreadable, too_long: what was left out.
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
        name: what stands after the scheme. Raises `DataError` for a name that it does not have.
    """

    @abstractmethod
    def __init__(self, name: str): ...

    @abstractmethod
    def dataset(self, context: SourceContext) -> StreamedDataset:
        """The data set for one run."""


DATA_SOURCES: Registry[type[DataSource]] = Registry("data source", "videoxl.data_sources", error=DataError)


def find_source(path: str) -> DataSource | None:
    """The source that a path names by its scheme; None where it has none. Raises `DataError` for an unknown scheme."""
    match = _SCHEME.match(path)
    if match is None or Path(path).exists():
        return None
    return DATA_SOURCES.get(match.group(1))(match.group(2))


class LazyFrames(Protocol):
    """Frames of several visual inputs that still have to be made; iterates over each input's own numbers.

    Attributes:
        counts: frames of each input.
    """

    counts: list[int]

    def __iter__(self) -> Iterator[Tensor]: ...

    def draw(self, device: torch.device) -> Tensor:
        """uint8 [N, S, S, 3], the frames of all inputs one after the other."""

    def chunks(self, num_frames: int) -> Iterator[LazyFrames]:
        """The same frames, at most `num_frames` at a time."""
