"""What stands before a question, read into a cache, and the likelihood of what may stand after it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from videoxl.cache.summary import SummaryCache
from videoxl.chat import join_prompt_ids
from videoxl.compression.base import get_compressor
from videoxl.errors import PromptError
from videoxl.model.memory import VideoMemory
from videoxl.model.modeling import LlavaQwenForCausalLM
from videoxl.model.prompt import split_prompt
from videoxl.model.runner import make_chooser, read_context
from videoxl.model.visual import arrange_spans
from videoxl.session.answer import FrameTime


@dataclass
class Inputs:
    """The visual input of one prompt, read or ready to be read.

    Attributes:
        texts: ids before, between and after the visual inputs.
        memory: the one that comes first, if there is one. images, modalities: what follows it.
        visual_tokens: of all. frames: of all videos, in order. notes: sentences for the user.
        method: `ratio` and `compressor`, where nothing was read.
    """

    texts: list[list[int]]
    memory: VideoMemory | None
    images: list[Tensor]
    modalities: list[str]
    visual_tokens: int
    frames: tuple[FrameTime, ...]
    notes: list[str]
    method: dict[str, Any]


def read_context_of(model: LlavaQwenForCausalLM, inputs: Inputs) -> SummaryCache:
    """A cache that has read all of a prompt but the text after its last visual input.

    Raises:
        PromptError: a memory that holds no frame, was read after another text, or has more visual inputs after it.
    """
    prompt = split_prompt(torch.tensor([join_prompt_ids(*inputs.texts)]))
    if inputs.memory is not None and not inputs.images:
        inputs.memory.check_prompt(model, prompt)
        return inputs.memory.finalize_for_query()[0]
    if inputs.memory is not None:
        raise PromptError("likelihoods after a memory and more visual inputs are not computed; give the files")
    cache = SummaryCache(len(model.model.layers))
    if inputs.images:
        inner, method = model.model, get_compressor(inputs.method["compressor"])
        spans = arrange_spans(inputs.images, inputs.modalities, 1, len(inputs.texts) - 1, inner)
        chooser = make_chooser(model.config, None, inputs.method["ratio"], compressor=method)
        for _ in read_context(inner, prompt, spans, cache, chooser, compressor=method):
            pass
    return cache


def score_continuation(
    model: LlavaQwenForCausalLM, cache: SummaryCache, ids: Sequence[int], number: int
) -> tuple[float, bool]:
    """Log-likelihood of the last `number` of `ids` after what a cache holds; the cache grows.

    Returns:
        (sum of the natural logarithms of the tokens' probabilities, whether each is the likeliest one).
    """
    inner = model.model
    tokens = torch.tensor([ids], device=inner.input_device)
    hidden = inner.text_step(inner.embed_tokens(tokens), cache)
    logits = model.lm_head(hidden[0, -number - 1 : -1]).float()
    wanted = tokens[0, -number:].to(logits.device)
    chosen = logits.log_softmax(dim=-1).gather(1, wanted[:, None])
    return float(chosen.sum()), bool((logits.argmax(dim=-1) == wanted).all())
