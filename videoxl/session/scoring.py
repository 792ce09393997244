"""Reads the prompt before a question into a cache, and scores continuations of it."""

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
        memory: the first input, if it is a video memory. images, modalities: pixel values and kinds of the others.
        visual_tokens: number over all inputs. frames: those of all videos, in order. notes: sentences for the user.
        method: `ratio` and `compressor` for `images`; empty if there is a memory.
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
    """A cache with the prompt read up to its last visual input; the text after that is not read.

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
    """Log-likelihood of the last `number` of `ids`, given the cache and the ids before them; `ids` extend the cache.

    Returns:
        (sum of the tokens' log probabilities in nats, whether greedy decoding gives these tokens).
    """
    inner = model.model
    tokens = torch.tensor([ids], device=inner.input_device)
    hidden = inner.text_step(inner.embed_tokens(tokens), cache)
    logits = model.lm_head(hidden[0, -number - 1 : -1]).float()
    wanted = tokens[0, -number:].to(logits.device)
    chosen = logits.log_softmax(dim=-1).gather(1, wanted[:, None])
    return float(chosen.sum()), bool((logits.argmax(dim=-1) == wanted).all())
