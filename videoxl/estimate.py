"""What a video of F frames costs: visual tokens, cached positions, bytes on the GPU, arithmetic. Known before a run.

Bytes are what PyTorch allocates (`torch.cuda.max_memory_allocated`); the CUDA context (about 0.5 GiB) comes on top.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from videoxl.errors import ConfigError
from videoxl.model.configuration import VideoXLConfig
from videoxl.model.modeling import LlavaQwenForCausalLM
from videoxl.model.plan import RatioChooser, plan_region
from videoxl.model.pooling import visual_length
from videoxl.model.runner import frames_at_once, windows_at_once
from videoxl.model.vision_tower import OPEN_CLIP_PREFIX, resolve_vision_config

GIB = 1 << 30
BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
TEXT_TOKENS = 64  # prefix and question of an ordinary chat prompt
# The allocator's rounding and what is alive beside the tensors counted below; from the measurements in docs/LOG.md.
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


def estimate(config: VideoXLConfig, frames: int, ratio: int, dtype: str = "bfloat16") -> Estimate:
    """Predict the cost of `frames` frames at compression ratio `ratio` with weights in `dtype`.

    Raises:
        PlanError: a ratio that the plan cannot serve. ConfigError: a vision tower other than CLIP.
    """
    size = BYTES[dtype]
    vision = _clip_tower(config)
    patches = (vision.image_size // vision.patch_size) ** 2
    tokens, cached, highest, rows, pairs = _plan(config, patches, frames, ratio)
    head_dim = config.hidden_size // config.num_attention_heads
    cache, work = reading_bytes(config, frames, ratio, dtype)

    decoder, tower = count_parameters(config)
    linear = config.num_hidden_layers * (
        2 * config.hidden_size**2
        + 2 * config.hidden_size * config.num_key_value_heads * head_dim
        + 3 * config.hidden_size * config.intermediate_size
    )
    vision_linear = vision.num_hidden_layers * (
        4 * vision.hidden_size**2 + 2 * vision.hidden_size * vision.intermediate_size
    )
    layers_run = (vision.num_hidden_layers + 1 + config.mm_vision_select_layer) / vision.num_hidden_layers
    sequence = patches + 1
    return Estimate(
        frames=frames,
        ratio=ratio,
        visual_tokens=tokens,
        cached_positions=cached,
        highest_position=max(highest, cached - 1),
        trained_positions=config.max_position_embeddings,
        weights=(decoder + tower) * size,
        cache=cache,
        work=work,
        linear_flop=2.0 * linear * rows,
        attention_flop=4.0 * config.num_hidden_layers * config.hidden_size * pairs,
        vision_flop=frames
        * layers_run
        * (2.0 * vision_linear * sequence + 4.0 * vision.num_hidden_layers * vision.hidden_size * sequence**2)
        + 2.0 * frames * patches * (config.mm_hidden_size * config.hidden_size + config.hidden_size**2),
    )


def reading_bytes(
    config: VideoXLConfig, frames: int, ratio: int, dtype: str = "bfloat16", rows: int = 1
) -> tuple[int, int]:
    """Bytes of (cache, work) while `rows` videos are read at once; the weights come on top. Raises as `estimate`."""
    size = BYTES[dtype]
    vision = _clip_tower(config)
    patches = (vision.image_size // vision.patch_size) ** 2
    _, cached, *_ = _plan(config, patches, frames, ratio)
    head_dim = config.hidden_size // config.num_attention_heads
    position = 2 * config.num_hidden_layers * config.num_key_value_heads * head_dim * size
    chunk = min(frames, frames_at_once(torch.device("cuda"), vision.hidden_size))
    # Behind the summary stand a window's scratch and spare room: measured, about two windows.
    return rows * (cached + 2 * config.beacon_window) * position, _work(config, vision, chunk, ratio, size, rows)


def _clip_tower(config: VideoXLConfig):
    if config.mm_vision_tower is None or config.mm_vision_tower.startswith(OPEN_CLIP_PREFIX):
        raise ConfigError(f"costs are known for CLIP towers; this configuration has {config.mm_vision_tower!r}")
    return resolve_vision_config(config)


def _plan(config: VideoXLConfig, patches: int, frames: int, ratio: int) -> tuple[int, int, int, int, int]:
    """(visual tokens, cached positions, highest position, rows, pairs of query and key) of reading and a question."""
    tokens = visual_length(frames, patches, "video", config)
    chooser = RatioChooser([ratio], config.beacon_ratio_mix, config.beacon_window, config.max_position_embeddings)
    stored, highest, rows, pairs = TEXT_TOKENS // 2, 0, 0, 0
    for step in plan_region(tokens, config.beacon_window, chooser):
        length = step.num_tokens + step.num_beacons
        rows += length
        pairs += length * stored + length * (length + 1) // 2
        highest = max(highest, stored + length - 1)
        stored += step.num_kept
    return tokens, stored + TEXT_TOKENS // 2, highest, rows, pairs


def count_parameters(config: VideoXLConfig) -> tuple[int, int]:
    """Parameters of (decoder with projector and beacons, vision tower), from the model itself without storage."""
    with torch.device("meta"):
        model = LlavaQwenForCausalLM(config)
    if config.tie_word_embeddings:
        model.tie_weights()
    seen = {id(parameter): (name, parameter.numel()) for name, parameter in model.named_parameters()}
    tower = sum(number for name, number in seen.values() if name.startswith("model.vision_tower."))
    return sum(number for _, number in seen.values()) - tower, tower


def _work(config: VideoXLConfig, vision, chunk: int, ratio: int, size: int, rows: int) -> int:
    """Largest sum of activations alive at once: a chunk in the tower's or the projector's MLP, or its windows' MLP.

    Videos of a batch go through the tower one after the other, and through the decoder together.
    """
    of_frame = (vision.image_size // vision.patch_size) ** 2
    patches = chunk * (of_frame + 1)
    in_tower = patches * (2 * vision.hidden_size + 2 * vision.intermediate_size) * size
    in_projector = patches * (vision.hidden_size + 3 * config.hidden_size) * size
    filled = (visual_length(chunk, of_frame, "video", config) + config.beacon_window - 1) // config.beacon_window
    together = max(1, min(filled, windows_at_once(config, rows))) if ratio else 1
    window = rows * together * (config.beacon_window + (config.beacon_window // ratio if ratio else 0))
    # In 16 bits the gate becomes the MLP's middle (`swiglu`); otherwise that is a third tensor.
    in_window = window * (6 * config.hidden_size + (2 if size == 2 else 3) * config.intermediate_size) * size
    # A chunk's visual tokens, and once more put together with those that wait for their window to fill.
    features = rows * (2 * together + 1) * config.beacon_window * config.hidden_size * size
    logits = rows * config.vocab_size * 4 * 4
    pixels = chunk * 3 * vision.image_size**2 * 4 * 3
    return max(in_tower + pixels, in_projector, in_window + features) + logits
