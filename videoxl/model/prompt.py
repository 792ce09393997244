"""A batch of prompts as alternating text and visual spans, checked before anything is computed.

Shape letters: B rows, L tokens of a row with one placeholder a visual span, t tokens of a segment.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from videoxl.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from videoxl.errors import BatchError, PromptError


@dataclass(frozen=True)
class Rows:
    """Ids of B rows of any lengths, on the CPU. A training batch has hundreds, so they are handled together.

    Attributes:
        values: [B, t_max] int64, each row left-aligned; values after its end are meaningless.
        lengths: [B] int64; the longest is t_max.
    """

    values: np.ndarray
    lengths: np.ndarray

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]]) -> Rows:
        """From lists of ids."""
        lengths = np.array([len(row) for row in rows])
        values = np.zeros((len(rows), lengths.max()), dtype=np.int64)
        for position, row in enumerate(rows):
            values[position, : len(row)] = row
        return cls(values, lengths)

    def __len__(self) -> int:
        return len(self.values)

    @property
    def longest(self) -> int:
        return self.values.shape[1]

    @property
    def is_even(self) -> bool:
        """Whether all rows are equally long."""
        return bool((self.lengths == self.longest).all())

    def pad(self, value: int, side: str) -> tuple[Tensor, Tensor | None]:
        """[B, t_max] with `value` as padding, and its mask of the same shape, which is None without padding.

        Args:
            side: where padding goes: `left` for generation, `right` for training.
        """
        if self.is_even:
            return torch.from_numpy(self.values), None
        values, columns = self.values, np.arange(self.longest)
        if side == "left":
            columns = columns - (self.longest - self.lengths[:, None])
            values = np.take_along_axis(values, columns.clip(min=0), axis=1)
            inside = columns >= 0
        else:
            inside = columns < self.lengths[:, None]
        return torch.from_numpy(np.where(inside, values, value)), torch.from_numpy(inside.astype(np.int64))


@dataclass
class Prompt:
    """Rows of equal structure: text, visual span, text, ..., visual span, text.

    Attributes:
        texts: [B, t] int64 ids before each visual span, equally long in every row (t may be 0). One entry per span.
        suffixes: ids after the last visual span, of any lengths.
        labels: `texts`' and `suffixes`' labels in the same form, or None.
    """

    texts: list[Tensor]
    suffixes: Rows
    labels: tuple[list[Tensor], Rows] | None = field(default=None)

    @property
    def num_spans(self) -> int:
        """Visual spans of one row."""
        return len(self.texts)


def split_prompt(input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None) -> Prompt:
    """Split rows of `input_ids` [B, L] at their placeholders; padding (mask 0) is dropped wherever it is.

    The result is on the CPU: each access to a row on a GPU would wait for all queued work. It may share memory with the
    arguments.

    Raises:
        PromptError: a negative id other than the placeholder, no token after the last visual span, or unequal shapes.
        BatchError: rows that differ in their number of visual spans or in the lengths of text before a visual span.
    """
    if input_ids.dim() != 2:
        raise PromptError(f"input_ids must be [batch, tokens]; it has the shape {list(input_ids.shape)}")
    for name, given in (("attention_mask", attention_mask), ("labels", labels)):
        if given is not None and given.shape != input_ids.shape:
            raise PromptError(
                f"{name} has the shape {list(given.shape)} and input_ids {list(input_ids.shape)}; they must be the same"
            )
    ids = input_ids.cpu().numpy()
    learnt = None if labels is None else labels.cpu().numpy()
    stray = ids[(ids < 0) & (ids != IMAGE_TOKEN_INDEX)]
    if stray.size:
        raise PromptError(f"input_ids holds {stray[0]}; only {IMAGE_TOKEN_INDEX} (a visual span) may be negative")
    kept = np.full(len(ids), ids.shape[1])
    if attention_mask is not None:
        kept, ids, learnt = _without_padding(attention_mask.cpu().numpy().astype(bool), ids, learnt)
    cuts = _find_cuts((ids == IMAGE_TOKEN_INDEX) & (np.arange(ids.shape[1]) < kept[:, None]))
    start = cuts[-1] + 1 if cuts else 0
    if (kept == start).any():
        raise PromptError("the prompt ends with a visual span; put text (at least the assistant's turn) after it")
    prompt = Prompt(*_split(ids, cuts, kept - start))
    if learnt is not None:
        prompt.labels = _split(learnt, cuts, kept - start)
    return prompt


def _without_padding(
    keep: np.ndarray, ids: np.ndarray, labels: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Lengths [B] of rows without what `keep` [B, L] leaves out, and the rows, moved to the left."""
    lengths = keep.sum(axis=1)
    moves = (keep[:, 1:] > keep[:, :-1]).any()  # padding before text
    order = np.argsort(~keep, axis=1, kind="stable") if moves else None

    def moved(rows: np.ndarray) -> np.ndarray:
        return (rows if order is None else np.take_along_axis(rows, order, axis=1))[:, : lengths.max()]

    return lengths, moved(ids), None if labels is None else moved(labels)


def _find_cuts(positions: np.ndarray) -> list[int]:
    """Columns of the placeholders, the same in every row of `positions` [B, t]; else a `BatchError`."""
    numbers, columns = positions.sum(axis=1), np.nonzero(positions)[1]
    if (positions == positions[0]).all():
        return columns[: numbers[0]].tolist()
    of_rows = np.split(columns, numbers.cumsum()[:-1])
    lengths = [(np.diff(of_row, prepend=-1) - 1).tolist() for of_row in of_rows]
    raise BatchError(
        "rows of a batch need the same text lengths before each visual span (only the text after the last one "
        f"may differ); the rows have {lengths} tokens. Send the rows one by one, or group them by length"
    )


def _split(rows: np.ndarray, cuts: list[int], suffix_lengths: np.ndarray) -> tuple[list[Tensor], Rows]:
    """Texts before each of `cuts`, and the suffix after the last one, `suffix_lengths` [B] tokens."""
    edges = [-1, *cuts]
    texts = [torch.from_numpy(rows[:, left + 1 : right]) for left, right in zip(edges[:-1], edges[1:])]
    return texts, Rows(rows[:, edges[-1] + 1 :], suffix_lengths)


def shifted_labels(prompt: Prompt, span_lengths: list[int], times: int = 1) -> list[Tensor]:
    """The targets of each step's tokens: labels shifted left by one over the whole expanded sequence.

    Args:
        times: number of rows that share everything before the suffix; its labels there are those of the first row.

    Returns:
        [B / times, t] for each text and each visual span in order, then [B, t] for the suffix (padded on the right).
    """
    if prompt.labels is None:
        raise PromptError("the prompt has no labels to shift")
    texts, suffixes = prompt.labels
    suffix, _ = suffixes.pad(IGNORE_INDEX, "right")
    segments = []
    for text, length in zip(texts, span_lengths):
        shared = text[::times]
        segments += [shared, shared.new_full((len(shared), length), IGNORE_INDEX)]
    context = torch.cat([*segments, suffix[::times, :1]], dim=1)[:, 1:]
    last = torch.cat([suffix[:, 1:], suffix.new_full((len(suffix), 1), IGNORE_INDEX)], dim=1)
    return [*context.split([segment.shape[1] for segment in segments], dim=1), last]


def transform_input_id(input_ids: Tensor, num_tokens: int, special_token: int) -> Tensor:
    """Expand ids [B, L] as `generate` does: the first row's first placeholder column becomes `num_tokens` of
    `special_token`."""
    positions = (input_ids == IMAGE_TOKEN_INDEX).nonzero()
    if len(positions) == 0:
        raise PromptError("input_ids holds no <image> placeholder to expand")
    position = int(positions[0, 1])
    visual = input_ids.new_full((len(input_ids), num_tokens), special_token)
    return torch.cat([input_ids[:, :position], visual, input_ids[:, position + 1 :]], dim=1)
