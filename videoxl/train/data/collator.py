"""Collates samples with equal plans into one batch.

Shape letters: B samples, K questions each, L tokens in the longest row, F frames, S side, P patches, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from videoxl.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from videoxl.train.data.dataset import Sample


def collate(samples: Sequence[Sample]) -> dict[str, Any]:
    """One batch.

    Returns:
        `input_ids`, `attention_mask`, `labels` [B * K, L], padded on the right; `images` (flat, sample by sample: uint8
        [F, S, S, 3] or features [F, P, C]) and `modalities`; and what the trainer needs besides the model's inputs:
        `questions`, `evidence` (frame ranges per visual span, over all samples), `draw` (epoch and index that seed the
        batch's random draws), `ids`, `bad`, `targets` (number of labelled tokens or classes); for class tasks also
        `classes` [B, attributes], or [B, attributes, P] for patches, and `never` of the same shape if classes are
        excluded.
    """
    questions = len(samples[0].encoded)
    batch: dict[str, Any] = {
        "images": [frames for sample in samples for frames in sample.visual],
        "modalities": [sample.kind for sample in samples for _ in sample.visual],
        "questions": max(1, questions),
        "evidence": _merge_evidence(samples),
        "draw": (samples[0].epoch, samples[0].index),
        "ids": [sample.id for sample in samples],
        "bad": [entry for sample in samples for entry in sample.bad],
    }
    if len(samples[0].classes):
        batch["classes"] = torch.stack([torch.as_tensor(sample.classes) for sample in samples])
        if len(samples[0].never):
            batch["never"] = torch.stack([torch.as_tensor(sample.never) for sample in samples])
    if questions:
        batch |= _pad([_shared_once(sample) for sample in samples])
    batch["targets"] = number_of_targets(batch)
    return batch


def number_of_targets(batch: dict[str, Any]) -> int:
    """Number of labelled tokens, or classes, of a batch."""
    targets = batch["classes"] if "classes" in batch else batch["labels"][:, 1:]
    return int((targets != IGNORE_INDEX).sum())


def _shared_once(sample: Sample) -> list[tuple[list[int], list[int]]]:
    """Rows of a sample; text that its questions share has labels only in the first row."""
    rows = [sample.encoded[0]]
    for ids, labels in sample.encoded[1:]:
        last = max((place for place, token in enumerate(ids) if token == IMAGE_TOKEN_INDEX), default=-1)
        rows.append((ids, [IGNORE_INDEX] * (last + 1) + labels[last + 1 :]))
    return rows


def _pad(grouped: list[list[tuple[list[int], list[int]]]]) -> dict[str, torch.Tensor]:
    rows = [row for sample in grouped for row in sample]
    longest = max(len(ids) for ids, _ in rows)
    ids = np.zeros((len(rows), longest), dtype=np.int64)  # NumPy converts lists several times faster than PyTorch
    mask = np.zeros_like(ids)
    labels = np.full_like(ids, IGNORE_INDEX)
    for place, (row, wanted) in enumerate(rows):
        ids[place, : len(row)] = row
        labels[place, : len(row)] = wanted
        mask[place, : len(row)] = 1
    padded = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    return {name: torch.from_numpy(numbers) for name, numbers in padded.items()}


def _merge_evidence(samples: Sequence[Sample]) -> list[list[tuple[int, int]]]:
    """Frame ranges of each visual span over all samples: gradients must flow where any of them needs it."""
    merged: list[list[tuple[int, int]]] = [[] for _ in range(len(samples[0].visual))]
    for sample in samples:
        for span, ranges in zip(merged, sample.evidence):
            span += ranges
    return merged
