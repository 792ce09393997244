"""Batched answers of a model to many questions about many videos.

Shape letters: B videos, F frames, P patches, C channels of the tower, t visual tokens, H hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from videoxl.chat import join_prompt_ids, video_prompt_ids
from videoxl.compression.base import get_compressor
from videoxl.media.pixels import VideoXLImageProcessor
from videoxl.model.modeling import LlavaQwenForCausalLM
from videoxl.model.prompt import Rows
from videoxl.model.visual import VisualSpan
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
    model: LlavaQwenForCausalLM,
    tokenizer,
    features: Sequence[Tensor] | None,
    questions: Sequence[str],
    ratio: int,
    compressor: str | None = None,
) -> list[str]:
    """Greedy answers to one question per video, for all videos in one batch.

    Args:
        features: features of the tower, [F, P, C] per video; None: ask without a video.
        compressor: name of the compression method; None: beacons.
    """
    prefix, _ = video_prompt_ids(tokenizer, "")
    suffixes = [video_prompt_ids(tokenizer, question)[1] for question in questions]
    if features is None:
        rows = [[*prefix, *ids] for ids in suffixes]
        extra = {}
    else:
        rows = [join_prompt_ids(prefix, ids) for ids in suffixes]
        extra = {"images": list(features), "modalities": ["video"], "compressor": compressor}
        extra["ratio"] = None if get_compressor(compressor).fixed_ratio is not None else ratio
    ids, mask = Rows.of(rows).pad(tokenizer.pad_token_id, "left")
    mask = torch.ones_like(ids) if mask is None else mask
    output = model.generate(
        ids.to(model.device),
        attention_mask=mask.to(model.device),
        do_sample=False,
        max_new_tokens=LONGEST_ANSWER,
        pad_token_id=tokenizer.pad_token_id,
        **extra,
    )
    start = ids.shape[1]
    if features is not None:  # the output begins with the expanded prompt
        start += VisualSpan([features[0]], "video").length(model.model) - 1
    return [text.strip() for text in tokenizer.batch_decode(output[:, start:], skip_special_tokens=True)]
