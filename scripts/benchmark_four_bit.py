"""The part `four_bit` of `scripts/benchmark.py`: weights of 4 bits, loaded from a checkpoint as a user loads them."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from benchmark_model import Bench, Row

from videoxl.model.loading import load_pretrained_model

TOKENIZER = Path(__file__).resolve().parent.parent / "assets" / "tiny-random"


def four_bit(bench: Bench) -> list[Row]:
    """Peak memory and time of reading, and new tokens per second, with 4-bit decoder weights (extra `quant`).

    The logits' error is relative to the same random weights in full precision; it says little about real answers.
    """
    import bitsandbytes  # noqa: F401  # fail now if it is missing, not after a checkpoint is written

    videos = [bench.host_frames(frames) for frames in bench.frames or (2048,)]
    wanted = [bench.first_logits(bench.read(video)) for video in videos]
    with tempfile.TemporaryDirectory() as folder:
        bench.model.save_pretrained(folder)
        for name in ("tokenizer_config.json", "vocab.json", "merges.txt"):
            shutil.copy(TOKENIZER / name, folder)
        device = bench.device
        bench.model.to("cpu")
        bench.forget_peak()
        try:
            _, model, *_ = load_pretrained_model(
                folder, load_4bit=True, device_map={"": device}, torch_dtype=bench.dtype
            )
            rows = [_measured(replace(bench, model=model), video, plain) for video, plain in zip(videos, wanted)]
        finally:
            model = None
            bench.model.to(device)
    return rows


def _measured(bench: Bench, video, plain: torch.Tensor) -> Row:
    bench.forget_peak()
    bench.answer(bench.read(video), 2)  # kernels are loaded before anything is timed
    seconds, held = bench.timed(bench.read, video)
    logits = bench.first_logits(held)
    first = bench.median(bench.answer, held, 1)
    whole, made = bench.timed(bench.answer, held, 1 + bench.new_tokens)
    return {
        "frames": len(video.frames),
        "ratio": bench.ratio,
        "read_s": seconds,
        "tokens_per_s": (made - 1) / (whole - first),
        "peak_gib": bench.peak(),
        "logits_error": ((logits - plain).norm() / plain.norm()).item(),
        "same_token": int(logits.argmax() == plain.argmax()),
    }
