"""Answers of a model to many questions about many videos, a batch at a time.

Shape letters: B videos, F frames, P patches, C channels of the tower, t visual tokens, H hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from videoxl.conversation import join_prompt_ids, video_prompt_ids
from videoxl.image_processing import VideoXLImageProcessor
from videoxl.model.cache import SummaryCache
from videoxl.model.modeling import LlavaQwenForCausalLM
from videoxl.model.prompt import Rows
from videoxl.model.runner import Region, iter_features
from videoxl.synth.drawing import DrawnFrames

FRAMES_AT_ONCE = {"cpu": 64, "cuda": 1024}
LONGEST_ANSWER = 16


@torch.inference_mode()
def encode(
    model: LlavaQwenForCausalLM, processor: VideoXLImageProcessor, videos: Sequence[DrawnFrames | Tensor]
) -> list[Tensor]:
    """Features of the tower [F, P, C] of each video."""
    tower = model.model.vision_tower
    at_once = FRAMES_AT_ONCE.get(tower.device.type, 64)
    made = []
    for frames in videos:
        if isinstance(frames, DrawnFrames):
            parts = (part.draw(tower.device) for part in frames.chunks(at_once))
        else:
            parts = (part.to(tower.device) for part in frames.split(at_once))
        made.append(torch.cat([tower(processor.normalize(part, tower.dtype)) for part in parts]))
    return made


@torch.inference_mode()
def answer(
    model: LlavaQwenForCausalLM, tokenizer, features: Sequence[Tensor] | None, questions: Sequence[str], ratio: int
) -> list[str]:
    """Greedy answers, one question about each video; `features` None: asked without a video."""
    before, _ = video_prompt_ids(tokenizer, "")
    behind = [video_prompt_ids(tokenizer, question)[1] for question in questions]
    if features is None:
        rows = [[*before, *ids] for ids in behind]
        extra = {}
    else:
        rows = [join_prompt_ids(before, ids) for ids in behind]
        extra = {"images": list(features), "modalities": ["video"]}
    ids, mask = Rows.of(rows).pad(tokenizer.pad_token_id, "left")
    mask = torch.ones_like(ids) if mask is None else mask
    ratio_before, model.config.beacon_ratio = model.config.beacon_ratio, [ratio]
    try:
        output = model.generate(
            ids.to(model.device),
            attention_mask=mask.to(model.device),
            do_sample=False,
            max_new_tokens=LONGEST_ANSWER,
            pad_token_id=tokenizer.pad_token_id,
            **extra,
        )
    finally:
        model.config.beacon_ratio = ratio_before
    start = ids.shape[1]
    if features is not None:  # the output begins with the expanded prompt
        start += Region([features[0]], "video").length(model.model) - 1
    return [text.strip() for text in tokenizer.batch_decode(output[:, start:], skip_special_tokens=True)]


@torch.inference_mode()
def answer_reduced(
    model: LlavaQwenForCausalLM,
    tokenizer,
    features: Sequence[Tensor],
    questions: Sequence[str],
    ratio: int,
    how: str,
) -> list[str]:
    """First tokens of greedy answers where one visual token in `ratio` is kept without learnt compression.

    Args:
        how: `drop` (every ratio-th token) or `mean` (the mean of every ratio tokens).
    """
    inner = model.model
    tokens = torch.cat(list(iter_features(inner, Region(list(features), "video"))), dim=1)
    kept = tokens[:, ratio - 1 :: ratio] if how == "drop" else tokens.unflatten(1, (-1, ratio)).mean(dim=2)
    before, _ = video_prompt_ids(tokenizer, "")
    cache = SummaryCache(len(inner.layers))
    prefix = torch.tensor([before] * len(features), device=inner.input_device)
    inner.text_step(inner.embed_tokens(prefix), cache)
    for part in kept.split(model.config.beacon_window, dim=1):
        inner.text_step(part, cache)
    behind = Rows.of([video_prompt_ids(tokenizer, question)[1] for question in questions])
    ids, _ = behind.pad(0, "right")  # what stands behind a row's last token changes nothing before it
    hidden = inner.text_step(inner.embed_tokens(ids.to(inner.input_device)), cache)
    last = torch.from_numpy(behind.lengths - 1).to(hidden.device)
    best = model.lm_head(hidden[torch.arange(len(behind), device=hidden.device), last]).argmax(dim=-1)
    return [tokenizer.decode([token], skip_special_tokens=True).strip() for token in best.tolist()]
