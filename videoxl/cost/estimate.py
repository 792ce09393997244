"""What a video of F frames costs: visual tokens, cached positions, bytes on the GPU, arithmetic. Known before a run.

Bytes are what PyTorch allocates (`torch.cuda.max_memory_allocated`); the CUDA context (about 0.5 GiB) comes on top.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from videoxl.compression.base import Compressor, get_compressor
from videoxl.compression.plan import RatioChooser, plan_span
from videoxl.cost.batching import frames_at_once, windows_at_once
from videoxl.cost.shapes import ModelShape, TowerShape
from videoxl.errors import ConfigError

GIB = 1 << 30
BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
DEFAULT_RATIO = 8
TEXT_TOKENS = 64  # prefix and question of an ordinary chat prompt
# The allocator's rounding, and tensors alive beside those counted below; measured (docs/log/2026-11.md).
SLACK = 1.02


@dataclass(frozen=True)
class Estimate:
    """Predicted cost of reading a video with one fixed ratio.

    Attributes:
        cached_positions: prefix, beacons and question. highest_position: largest RoPE position in any step.
        trained_positions: `max_position_embeddings`.
        weights, cache, work, total: bytes.
        linear_flop, attention_flop, vision_flop: floating-point operations of encoding and summarising.
    """

    frames: int
    ratio: int
    visual_tokens: int
    cached_positions: int
    highest_position: int
    trained_positions: int
    weights: int
    cache: int
    work: int
    linear_flop: float
    attention_flop: float
    vision_flop: float

    @property
    def total(self) -> int:
        return int((self.weights + self.cache + self.work) * SLACK)

    @property
    def flop(self) -> float:
        return self.linear_flop + self.attention_flop + self.vision_flop


def estimate(
    shape: ModelShape,
    frames: int,
    ratio: int | None = None,
    dtype: str = "bfloat16",
    compressor: str | Compressor | None = None,
) -> Estimate:
    """Predict the cost of `frames` frames at compression ratio `ratio` (None: the compressor's own, or 8).

    Raises:
        PlanError: a ratio that the plan or the method cannot serve. ConfigError: a vision tower whose cost is not
            known.
    """
    size, tower = BYTES[dtype], _tower(shape)
    method = get_compressor(compressor)
    ratio = method.resolve_ratio(ratio)
    ratio = DEFAULT_RATIO if ratio is None else ratio
    tokens, cached, highest, rows, pairs = _plan(shape, frames, ratio, method)
    cache, work = reading_bytes(shape, frames, ratio, dtype, method)
    vision_linear = 4 * tower.width**2 + 2 * tower.width * tower.intermediate_size
    sequence = tower.patches + 1
    return Estimate(
        frames=frames,
        ratio=ratio,
        visual_tokens=tokens,
        cached_positions=cached,
        highest_position=max(highest, cached - 1),
        trained_positions=shape.max_positions,
        weights=(shape.decoder_parameters + tower.parameters) * size,
        cache=cache,
        work=work,
        linear_flop=2.0 * shape.linear_parameters * rows,
        attention_flop=4.0 * shape.layers * shape.heads * shape.head_dim * pairs,
        vision_flop=frames * tower.layers_run * (2.0 * vision_linear * sequence + 4.0 * tower.width * sequence**2)
        + 2.0 * frames * tower.patches * shape.projector_parameters,
    )


def reading_bytes(
    shape: ModelShape,
    frames: int,
    ratio: int,
    dtype: str = "bfloat16",
    compressor: str | Compressor | None = None,
    rows: int = 1,
) -> tuple[int, int]:
    """Bytes of (cache, work) while `rows` videos are read at once, weights not included. Raises as `estimate`."""
    size, tower = BYTES[dtype], _tower(shape)
    method = get_compressor(compressor)
    ratio = method.resolve_ratio(ratio) or 0
    _, cached, *_ = _plan(shape, frames, ratio, method)
    position = shape.position_elements * size
    chunk = min(frames, frames_at_once(torch.device("cuda"), tower.width))
    # After the summary come a window's scratch and spare room: about two windows, measured.
    return rows * (cached + 2 * shape.window) * position, _work(shape, tower, chunk, ratio, size, rows, method)


def _tower(shape: ModelShape) -> TowerShape:
    if shape.tower is None:
        raise ConfigError(f"costs are known for CLIP towers; this configuration has {shape.tower_name!r}")
    return shape.tower


def _plan(shape: ModelShape, frames: int, ratio: int, compressor: Compressor) -> tuple[int, int, int, int, int]:
    """(visual tokens, cached positions, highest position, rows, query-key pairs) of a video and a question."""
    tokens = frames * shape.tokens_a_frame
    chooser = RatioChooser([ratio], shape.ratio_mix, shape.window, shape.max_positions)
    stored, highest, rows, pairs = TEXT_TOKENS // 2, 0, 0, 0
    for window in plan_span(tokens, shape.window, chooser):
        length = compressor.num_rows(window)
        rows += length
        pairs += length * stored + length * (length + 1) // 2
        highest = max(highest, stored + length - 1)
        stored += compressor.num_kept(window)
    return tokens, stored + TEXT_TOKENS // 2, highest, rows, pairs


def _work(
    shape: ModelShape, tower: TowerShape, chunk: int, ratio: int, size: int, rows: int, compressor: Compressor
) -> int:
    """Largest sum of activations alive at once: a chunk in the tower's or the projector's MLP, or its windows' MLP.

    Videos of a batch go through the tower one after the other, and through the decoder together.
    """
    hidden, intermediate = shape.hidden_size, shape.intermediate_size
    patches = chunk * (tower.patches + 1)
    in_tower = patches * (2 * tower.width + 2 * tower.intermediate_size) * size
    in_projector = patches * (tower.width + 3 * hidden) * size
    filled = (chunk * shape.tokens_a_frame + shape.window - 1) // shape.window
    at_once = 1 if shape.one_by_one else windows_at_once(shape.window, intermediate, rows)
    together = max(1, min(filled, at_once)) if ratio else 1
    chooser = RatioChooser([ratio], shape.ratio_mix, shape.window, shape.max_positions)
    (full,) = plan_span(shape.window, shape.window, chooser)
    window = rows * together * compressor.num_rows(full)
    # In 16 bits `swiglu` overwrites the gate with its result; otherwise the result is a third tensor.
    in_window = window * (6 * hidden + (2 if size == 2 else 3) * intermediate) * size
    # A chunk's visual tokens, and a copy concatenated with the pending ones.
    features = rows * (2 * together + 1) * shape.window * hidden * size
    logits = rows * shape.vocab_size * 4 * 4
    pixels = chunk * 3 * tower.image_size**2 * 4 * 3
    return max(in_tower + pixels, in_projector, in_window + features) + logits
