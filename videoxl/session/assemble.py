"""An answer with its numbers, from the input of a question."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from videoxl.compression.base import get_compressor
from videoxl.session.answer import Answer
from videoxl.session.scoring import Inputs
from videoxl.utils.timing import StageTimer, peak_memory


def assemble_answer(
    text: str,
    new_tokens: int,
    inputs: Inputs,
    visual_lengths: Sequence[int],
    timer: StageTimer,
    device: torch.device,
    notes: Sequence[str],
) -> Answer:
    """Count what the answer rests on. `visual_lengths`: visual tokens of each of `inputs.images`."""
    memory = inputs.memory
    ratios: tuple[int, ...] = ()
    cached = sum(map(len, inputs.texts[:-1]))
    method = inputs.method.get("compressor")
    if memory is not None:
        cached += memory.summary_length - len(inputs.texts[0])
        ratios = tuple(memory.ratios)
        method = memory.reader.compressor
    elif inputs.images:
        ratios = (inputs.method["ratio"],)
    cached += sum(length // (ratios[0] or 1) for length in visual_lengths)
    return Answer(
        text=text,
        new_tokens=new_tokens,
        prompt_tokens=sum(map(len, inputs.texts)),
        visual_tokens=inputs.visual_tokens,
        cached_positions=cached,
        ratios=ratios,
        compressor=get_compressor(method).name,
        frames=inputs.frames,
        seconds=dict(timer.seconds),
        peak_memory_bytes=peak_memory(device),
        notes=(*inputs.notes, *notes),
    )
