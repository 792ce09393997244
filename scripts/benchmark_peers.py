"""The part `peers` of `scripts/benchmark.py`: the same decoder without compression, in plain transformers."""

from __future__ import annotations

import time

import torch
from benchmark_model import PREFIX, QUESTION, Bench, Row
from transformers import Qwen2Config, Qwen2ForCausalLM
from transformers.generation.streamers import BaseStreamer

from videoxl import VideoXLConfig


class TokenClock(BaseStreamer):
    """Times at which each new token arrived."""

    def __init__(self):
        self.times: list[float] = []

    def put(self, value) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass


def peers(bench: Bench) -> list[Row]:
    """The same decoder without compression: transformers' own Qwen2 on as many visual tokens, vision not counted.

    As a user of transformers gets it: its SDPA path, `generate`, whatever kernels PyTorch picks.
    """
    config = plain_config(bench.model.config)
    before = torch.get_default_dtype()
    torch.set_default_dtype(bench.dtype)
    bench.forget_peak()
    bench.model.to("cpu")  # both would not fit beside such a cache
    rows = []
    try:
        with bench.device:
            plain = Qwen2ForCausalLM(config).eval()
        plain.generation_config.eos_token_id = None
        for frames in bench.frames or (2048,):
            tokens = bench.predicted(frames, bench.ratio).visual_tokens + PREFIX + QUESTION
            read_plain(plain, min(tokens, 2048), 4)  # kernels are loaded before anything is timed
            bench.forget_peak()
            started, times = read_plain(plain, tokens, 1 + bench.new_tokens)
            rows.append(
                {
                    "frames": frames,
                    "ratio": bench.ratio,
                    "tokens": tokens,
                    "prefill_s": times[0] - started,
                    "tokens_per_s": (len(times) - 1) / (times[-1] - times[0]),
                    "peak_gib": bench.peak(),
                }
            )
    finally:
        torch.set_default_dtype(before)
        bench.model.to(bench.device)
    return rows


def plain_config(config: VideoXLConfig) -> Qwen2Config:
    """The configuration of the decoder alone."""
    names = Qwen2Config().to_dict().keys() - {"model_type", "architectures", "dtype"}
    plain = Qwen2Config(**{name: value for name, value in config.to_dict().items() if name in names})
    plain._attn_implementation = "sdpa"
    return plain


def read_plain(plain: Qwen2ForCausalLM, tokens: int, new_tokens: int) -> tuple[float, list[float]]:
    """Generate after `tokens` random embeddings; returns the start time and the time of each new token."""
    embeds = torch.randn(1, tokens, plain.config.hidden_size, device=plain.device, dtype=plain.dtype) * 0.02
    mask = torch.ones(embeds.shape[:2], dtype=torch.long, device=plain.device)
    clock = TokenClock()
    if plain.device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    plain.generate(
        inputs_embeds=embeds,
        attention_mask=mask,
        max_new_tokens=new_tokens,
        do_sample=False,
        pad_token_id=0,
        streamer=clock,
    )
    return started, clock.times[-new_tokens:]
