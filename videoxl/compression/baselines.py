"""Methods without learnt compression, as baselines for beacons.

Shape letters: B batch, t visual tokens of a window, H hidden size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from videoxl.compression.base import TokenReducer
from videoxl.compression.plan import Window


class KeepAll(TokenReducer):
    """No compression: every visual token stays, so the ratio is always 0."""

    name = "none"
    fixed_ratio = 0

    def reduce(self, tokens: Tensor, window: Window) -> Tensor:
        return tokens


class DropTokens(TokenReducer):
    """Keeps the last token of every group of `ratio`, and drops the others before the decoder reads them."""

    name = "drop"

    def reduce(self, tokens: Tensor, window: Window) -> Tensor:
        first = window.ratio - 1 - window.remainder
        return tokens[:, first :: window.ratio]


class MeanOfTokens(TokenReducer):
    """Keeps the mean of every group of `ratio` tokens; of a group begun in an earlier window, the mean of its rest."""

    name = "mean"

    def reduce(self, tokens: Tensor, window: Window) -> Tensor:
        if not window.remainder and tokens.shape[1] == window.num_groups * window.ratio:
            return tokens.unflatten(1, (-1, window.ratio)).mean(dim=2)
        spans = [(max(first - window.start, 0), stop - window.start) for first, stop in window.group_spans()]
        means = [tokens[:, first:stop].mean(dim=1, keepdim=True) for first, stop in spans]
        return torch.cat(means, dim=1) if means else tokens[:, :0]
