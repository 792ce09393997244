"""Turns records into samples (token ids, labels and frames), read on demand.

A sample that cannot be read is replaced by another one, of the same shape if any can be read, so that the batch keeps
its plan. The sample carries the reasons in `bad`, and the trainer counts them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from videoxl.errors import DataError, VideoError, VideoXLError
from videoxl.media.choice import FrameChoice
from videoxl.media.pictures import best_grid, parse_grids
from videoxl.media.pixels import VideoXLImageProcessor
from videoxl.media.stream import open_video
from videoxl.media.views import is_anyres, resize_views
from videoxl.model.configuration import VideoXLConfig
from videoxl.model.modality import visual_length
from videoxl.train.data.labels import encode_conversation
from videoxl.train.data.plans import SamplePlan
from videoxl.train.data.records import Record
from videoxl.train.data.sample_index import SampleIndex

SampleKey = tuple[int, int]
"""(epoch, index), as samplers yield it."""


@dataclass
class Sample:
    """A record that was read.

    Attributes:
        index, epoch: number of the record and epoch; they seed the sample's random draws.
        encoded: (input_ids, labels) of each conversation.
        visual: uint8 frames [F, S, S, 3], or features of the tower [F, P, C], of each visual span.
        kind: `image`, `video` or `text`.
        evidence: for each visual span, half-open ranges of the frames that show the answer.
        classes: class number of each attribute, [attributes] or, for patches, [attributes, P]; empty for other tasks.
        never: int64 of the shape of `classes`, bit mask of the classes that the loss excludes; empty: none.
        bad: (id, reason) of the unreadable records that this sample replaces.
    """

    index: int
    epoch: int
    id: str
    kind: str
    encoded: list[tuple[list[int], list[int]]]
    visual: list[Tensor]
    evidence: list[list[tuple[int, int]]] = field(default_factory=list)
    classes: Sequence[int] | Tensor = ()
    never: Sequence[int] | Tensor = ()
    bad: list[tuple[str, str]] = field(default_factory=list)


class VideoXLDataset(Dataset):
    """Samples of records whose media are in the index.

    Attributes:
        records: the usable records. plans: the shape of each.
        unreadable: (id, reason) and too_long: (id, decoder positions) of records that are left out.
    """

    def __init__(
        self,
        records: Sequence[Record],
        index: SampleIndex,
        tokenizer,
        image_processor: VideoXLImageProcessor,
        config: VideoXLConfig,
        choice: FrameChoice,
        num_patches: int,
        version: str = "qwen_1_5",
        timeout: float | None = None,
        max_positions: int | None = None,
        features: Callable[[Path], Tensor | None] | None = None,
        control_tokens: bool = False,
    ):
        """Args:
        num_patches: patches of one view in the tower's output.
        timeout: seconds without a frame after which a decoder is killed.
        max_positions: samples that need more decoder positions are left out; None: no limit.
        features: called with a media path; returns its cached features, or None.
        control_tokens: as in `encode_conversation`.
        """
        self.tokenizer = tokenizer
        self.image_processor = image_processor
        self.config = config
        self.choice = choice
        self.num_patches = num_patches
        self.version = version
        self.control_tokens = control_tokens
        self.timeout = timeout
        self.features = features
        self.index = index
        self.records: list[Record] = []
        self.plans: list[SamplePlan] = []
        self.unreadable: list[tuple[str, str]] = []
        self.too_long: list[tuple[str, int]] = []
        for record in records:
            error = next(filter(None, map(index.error, record.media)), None)
            if error is not None:
                self.unreadable.append((record.id, error))
                continue
            texts, suffix, questions = index.text_shape(record)
            spans = tuple((record.kind, self._length(record, path)) for path in record.media)
            plan = SamplePlan(tuple(texts), spans, suffix, questions)
            if max_positions is not None and plan.num_positions(config) > max_positions:
                self.too_long.append((record.id, plan.num_positions(config)))
                continue
            self.records.append(record)
            self.plans.append(plan)
        self.class_names = _class_names(self.records)
        self._alike: dict[tuple, list[int]] = {}
        for number, plan in enumerate(self.plans):
            self._alike.setdefault(plan.key, []).append(number)

    def __len__(self) -> int:
        return len(self.records)

    def use_classes(self, names: dict[str, list[str]]) -> None:
        """Use another data set's class numbers. Raises `DataError` for classes that are not in `names`."""
        for name, classes in self.class_names.items():
            unknown = sorted(set(classes) - set(names.get(name, [])))
            if unknown:
                raise DataError(f"the evaluation data has classes of {name!r} that the training data lacks: {unknown}")
        self.class_names = names

    def __getitem__(self, key: SampleKey) -> Sample:
        """The sample of (epoch, index), or a replacement with `bad` filled in: of the same shape, else a neighbour.

        Raises:
            DataError: none of the candidates can be read.
        """
        epoch, index = key
        bad: list[tuple[str, str]] = []
        for candidate in self._candidates(index):
            record = self.records[candidate]
            try:
                sample = self._read(record, candidate, epoch)
                sample.bad = bad
                return sample
            except VideoXLError as error:
                bad.append((record.id, str(error)))
            except Exception as error:  # whatever a library raises for one file
                bad.append((record.id, f"{type(error).__name__}: {error}"))
        raise DataError(
            f"no sample of the shape of {self.records[index].id!r} can be read; the last reason: {bad[-1][1]}"
        )

    def _candidates(self, index: int) -> list[int]:
        """The record itself, then the others with its shape, then neighbours with another shape."""
        alike = self._alike[self.plans[index].key]
        place = alike.index(index)
        candidates = [*alike[place:], *alike[:place]]
        # From the first record of this shape on, so that all rows of a batch get the same replacement.
        near = [(alike[0] + step) % len(self) for step in range(1, min(len(self), 32))]
        return [*candidates, *(number for number in near if number not in alike)]

    def _read(self, record: Record, index: int, epoch: int) -> Sample:
        visual, evidence = [], []
        for path in record.media:
            frames, times = self.read_media(record, path)
            visual.append(frames)
            evidence.append(_frames_between(times, record.evidence))
        classes = [self.class_names[name].index(value) for name, value in (record.classes or {}).items()]
        return Sample(
            index,
            epoch,
            record.id,
            record.kind,
            encode_record(record, self.tokenizer, self.version, self.control_tokens),
            visual,
            evidence,
            classes,
        )

    def read_media(self, record: Record, path: Path) -> tuple[Tensor, list[float]]:
        """Frames or features of a file, and the seconds of its frames (empty for a picture)."""
        stored = self.features(path) if self.features is not None else None
        if record.kind == "image":
            return (resize_views(path, self.image_processor, self.config) if stored is None else stored), []
        if stored is not None and not record.evidence:
            return stored, []
        with open_video(str(path), self.image_processor, self.choice, timeout=self.timeout) as stream:
            times = stream.info.timestamps[stream.indices].tolist()
            if stored is not None:
                return stored, times
            if stream.num_frames != self.index.frames(path):
                raise VideoError(f"{path} has changed since it was indexed; delete the index beside the records")
            frames = np.concatenate([chunk.frames for chunk in stream])
        if len(frames) != stream.num_frames:
            raise VideoError(
                f"{path}: {stream.num_frames - len(frames)} of {stream.num_frames} frames cannot be decoded"
            )
        return torch.from_numpy(frames), times

    def _length(self, record: Record, path: Path) -> int:
        """Visual tokens of a file."""
        if record.kind == "video":
            return visual_length(self.index.frames(path), self.num_patches, "video", self.config)
        views = 1
        if is_anyres(self.config):
            side = self.image_processor.side
            width, height = best_grid(*self.index.size(path), parse_grids(self.config.image_grid_pinpoints, side))
            views += (width // side) * (height // side)
        return visual_length(views, self.num_patches, "image", self.config)


def encode_record(
    record: Record, tokenizer, version: str, control_tokens: bool = False
) -> list[tuple[list[int], list[int]]]:
    """Token ids and labels of a record's conversations; `control_tokens` as in `encode_conversation`."""
    has_image = record.kind != "text"
    return [
        encode_conversation(turns, tokenizer, version, has_image, control_tokens=control_tokens)
        for turns in record.conversations
    ]


def _frames_between(times: list[float], ranges: Sequence[tuple[float, float]]) -> list[tuple[int, int]]:
    """Half-open ranges of frames that show [start, end] seconds, from the frame visible at `start` on."""
    found = []
    for start, end in ranges if times else ():
        first = max(0, int(np.searchsorted(times, start, side="right")) - 1)
        found.append((first, max(first + 1, int(np.searchsorted(times, end, side="left")))))
    return found


def _class_names(records: Sequence[Record]) -> dict[str, list[str]]:
    """Names of each attribute's classes, in order; every record must have the same attributes."""
    labelled = [record for record in records if record.classes is not None]
    if not labelled:
        return {}
    names = list(labelled[0].classes)
    for record in labelled:
        if list(record.classes) != names:
            raise DataError(f"record {record.id!r} has classes for {list(record.classes)}; the first one has {names}")
    return {name: sorted({record.classes[name] for record in labelled}) for name in names}
