"""A batch of prompts as alternating text and visual regions, checked before anything is computed.

Shape letters: B rows, L tokens of a row with one placeholder a region, t tokens of a segment.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from videoxl.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from videoxl.errors import BatchError, PromptError


@dataclass
class Prompt:
    """Rows of equal structure: text, region, text, ..., region, text.

    Attributes:
        texts: [B, t] ids before each region, equally long in every row (t may be 0). One entry a region.
        suffixes: ids behind the last region, a tensor [t] a row, of any lengths.
        labels: `texts`' and `suffixes`' labels in the same form, or None.
    """

    texts: list[Tensor]
    suffixes: list[Tensor]
    labels: tuple[list[Tensor], list[Tensor]] | None = field(default=None)

    @property
    def num_regions(self) -> int:
        """Visual regions of one row."""
        return len(self.texts)


def split_prompt(input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None) -> Prompt:
    """Take rows of `input_ids` [B, L] apart at their placeholders; padding (mask 0) is dropped wherever it stands.

    The result lies on the CPU: every look at a row on a GPU would wait for all that the GPU has yet to do.

    Raises:
        PromptError: an id below 0 that is no placeholder, or no token behind the last region.
        BatchError: rows that differ in their number of regions or in the lengths of text before a region.
    """
    if input_ids.dim() != 2:
        raise PromptError(f"input_ids must be [batch, tokens]; it has the shape {list(input_ids.shape)}")
    ids, mask, labels = (x if x is None else x.cpu().numpy() for x in (input_ids, attention_mask, labels))
    stray = ids[(ids < 0) & (ids != IMAGE_TOKEN_INDEX)]
    if stray.size:
        raise PromptError(f"input_ids holds {stray[0]}; only {IMAGE_TOKEN_INDEX} (a visual region) may be negative")
    rows, label_rows = [], []
    for index, row in enumerate(ids):
        keep = slice(None) if mask is None else mask[index].astype(bool)
        row = row[keep]
        cuts = np.flatnonzero(row == IMAGE_TOKEN_INDEX).tolist()
        rows.append(_cut(row, cuts))
        if labels is not None:
            label_rows.append(_cut(labels[index][keep], cuts))
    lengths = [[len(text) for text in row[:-1]] for row in rows]
    if any(row != lengths[0] for row in lengths):
        raise BatchError(
            "rows of a batch need the same text lengths before each visual region (only the text behind the last one "
            f"may differ); the rows have {lengths} tokens. Send the rows one by one, or group them by length"
        )
    if any(len(row[-1]) == 0 for row in rows):
        raise PromptError("the prompt ends with a visual region; put text (at least the assistant's turn) behind it")
    prompt = Prompt(*_columns(rows))
    if labels is not None:
        prompt.labels = _columns(label_rows)
    return prompt


def _cut(row: np.ndarray, cuts: list[int]) -> list[np.ndarray]:
    edges = [-1, *cuts, len(row)]
    return [row[left + 1 : right] for left, right in zip(edges[:-1], edges[1:])]


def _columns(rows: list[list[np.ndarray]]) -> tuple[list[Tensor], list[Tensor]]:
    texts = [torch.from_numpy(np.stack([row[i] for row in rows])) for i in range(len(rows[0]) - 1)]
    return texts, [torch.from_numpy(row[-1]) for row in rows]


def pad_rows(rows: list[Tensor], value: int, side: str) -> tuple[Tensor, Tensor | None]:
    """Stack int64 rows [t] on the CPU, of any lengths, to [B, t_max]; the mask [B, t_max] is None without padding.

    Args:
        side: where padding goes: `left` for generation, `right` for training.
    """
    longest = max(len(row) for row in rows)
    if all(len(row) == longest for row in rows):
        return torch.stack(rows), None
    stacked = np.full((len(rows), longest), value)
    mask = np.zeros_like(stacked)
    for index, row in enumerate(rows):
        place = slice(longest - len(row), None) if side == "left" else slice(0, len(row))
        stacked[index, place] = row.numpy()
        mask[index, place] = 1
    return torch.from_numpy(stacked), torch.from_numpy(mask)


def shifted_labels(prompt: Prompt, region_lengths: list[int]) -> list[Tensor]:
    """What each step's tokens have to predict: labels moved left once over the whole expanded sequence.

    Returns:
        [B, t] for each text and each region in order, then for the suffix (padded on the right).
    """
    texts, suffixes = prompt.labels
    suffix, _ = pad_rows(suffixes, IGNORE_INDEX, "right")
    pieces = []
    for text, length in zip(texts, region_lengths):
        pieces += [text, text.new_full((len(text), length), IGNORE_INDEX)]
    pieces.append(suffix)
    whole = torch.cat(pieces, dim=1)
    whole = torch.cat([whole[:, 1:], whole.new_full((len(whole), 1), IGNORE_INDEX)], dim=1)
    return list(whole.split([piece.shape[1] for piece in pieces], dim=1))
