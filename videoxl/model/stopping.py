"""Stopping criteria of the published code."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import StoppingCriteria


class KeywordsStoppingCriteria(StoppingCriteria):
    """Stop a row as soon as its new text holds one of the keywords."""

    def __init__(self, keywords: Sequence[str], tokenizer, input_ids: Tensor | None = None):
        """`input_ids` is accepted but ignored: the expanded prompt is longer, so its end is found at the first call."""
        self.keywords = list(keywords)
        self.tokenizer = tokenizer
        self._prompt_length: int | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs) -> Tensor:
        if self._prompt_length is None or input_ids.shape[1] <= self._prompt_length:
            self._prompt_length = input_ids.shape[1] - 1  # the first call comes after one new token
        texts = self.tokenizer.batch_decode(input_ids[:, self._prompt_length :], skip_special_tokens=False)
        found = [any(keyword in text for keyword in self.keywords) for text in texts]
        return torch.tensor(found, dtype=torch.bool, device=input_ids.device)
