"""Time and memory of encoding, summarising and decoding, with random weights of a given shape.

    python scripts/benchmark.py --config configs/qwen2-7b.json --frames 128,512,2048 --ratio 8

Everything goes through the public surface: `model.summarize` on 8-bit frames that lie in host memory, then
`model.generate(..., memory=...)`. Encoding is timed alone as well; what `summarize` takes beyond it is the decoder's.
Prints a table and writes the same numbers as JSON. Needs no checkpoint; on a CPU choose a small configuration.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import transformers

from videoxl import LlavaQwenForCausalLM, VideoXLConfig
from videoxl.constants import IMAGE_TOKEN_INDEX
from videoxl.estimate import GIB, estimate
from videoxl.image_processing import VideoXLImageProcessor
from videoxl.model.runner import FRAMES_PER_CHUNK, encode_frames

PREFIX, QUESTION = 14, 42  # tokens of the published quick start's prompt before and behind the video


@dataclass
class HostFrames:
    """Random 8-bit frames in host memory, in the form that a decoder hands them over."""

    frames: torch.Tensor
    processor: VideoXLImageProcessor

    @property
    def timestamps(self) -> list[float]:
        return [float(i) for i in range(len(self.frames))]

    @property
    def indices(self) -> list[int]:
        return list(range(len(self.frames)))

    def pixels(self, device, dtype, part=slice(None)) -> torch.Tensor:
        return self.processor.normalize(self.frames[part].to(device, non_blocking=True), dtype)


def main() -> None:
    arguments = parse_arguments()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    warnings.filterwarnings("ignore", message=".*rope_scaling.*")
    config = VideoXLConfig.from_pretrained(arguments.config)
    config._attn_implementation = "sdpa"
    model = random_model(config, device, dtype)
    product = matrix_product_rate(device, dtype)
    rows = []
    for frames in arguments.frames:
        for _ in range(1 if arguments.no_warm_up else 2):  # the first round warms kernels and the allocator up
            row = measure(model, frames, arguments.ratio, arguments.new_tokens, dtype)
        row["tflops"] = row.pop("flop") / row["total_s"] / 1e12
        row["share_of_product"] = row["tflops"] / product
        rows.append(row)
        print_table(rows, product)
    report = {
        "config": str(arguments.config),
        "ratio": arguments.ratio,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or "cpu",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "dtype": str(dtype).removeprefix("torch."),
        "matrix_product_tflops": product,
        "rows": rows,
    }
    if arguments.output:
        arguments.output.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--config", type=Path, required=True, help="a model size from configs/, or any config.json")
    parser.add_argument(
        "--frames",
        type=lambda text: [int(n) for n in text.split(",")],
        default=[128, 512, 2048],
        help="numbers of frames, separated by commas",
    )
    parser.add_argument("--ratio", type=int, default=8, help="compression ratio (default 8)")
    parser.add_argument("--new-tokens", type=int, default=128, help="tokens to decode (default 128)")
    parser.add_argument("--no-warm-up", action="store_true", help="measure the first run instead of the second")
    parser.add_argument("--output", type=Path, help="write the numbers as JSON to this file")
    return parser.parse_args()


def random_model(config: VideoXLConfig, device: torch.device, dtype: torch.dtype) -> LlavaQwenForCausalLM:
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            model = LlavaQwenForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    model.generation_config.eos_token_id = None  # random weights must not end an answer early
    return model.eval()


@torch.inference_mode()
def measure(model, frames: int, ratio: int, new_tokens: int, dtype: torch.dtype) -> dict:
    """One video: times in seconds, peak memory in GiB, decoding in tokens a second."""
    device = model.device
    cuda = device.type == "cuda"
    side = model.model.vision_tower.image_size
    generator = torch.Generator().manual_seed(frames)
    video = torch.randint(0, 256, (frames, side, side, 3), dtype=torch.uint8, generator=generator)
    host = HostFrames(video.pin_memory() if cuda else video, VideoXLImageProcessor(side))
    words = min(1000, model.config.vocab_size)
    prefix = torch.randint(0, words, (PREFIX,))
    prompt = torch.cat([prefix, torch.tensor([IMAGE_TOKEN_INDEX]), torch.randint(0, words, (QUESTION,))])
    prompt = prompt.unsqueeze(0).to(device)
    ready: Callable[[], None] = torch.cuda.synchronize if cuda else lambda: None
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()

    def timed(work: Callable):
        ready()
        start = time.perf_counter()
        result = work()
        ready()
        return time.perf_counter() - start, result

    chunk = FRAMES_PER_CHUNK.get(device.type, 8)

    def encode() -> None:
        for start in range(0, frames, chunk):
            encode_frames(model.model, host.pixels(device, dtype, slice(start, start + chunk)))

    encode_s, _ = timed(encode)
    read_s, memory = timed(lambda: model.summarize([host], prefix_ids=prefix, ratio=ratio))
    first_s, _ = timed(lambda: model.generate(prompt, memory=memory, max_new_tokens=1, do_sample=False))
    answer_s, output = timed(
        lambda: model.generate(prompt, memory=memory, max_new_tokens=1 + new_tokens, do_sample=False)
    )
    produced = output.shape[1] - (prompt.shape[1] - 1 + memory.num_visual_tokens) - 1
    predicted = estimate(model.config, frames, ratio, str(dtype).removeprefix("torch."))
    return {
        "frames": frames,
        "visual_tokens": memory.num_visual_tokens,
        "cached_positions": memory.cache.get_query_offset(),
        "encode_s": encode_s,
        "summarise_s": read_s - encode_s,
        "first_token_s": first_s,
        "total_s": read_s + first_s,
        "decode_tokens_per_s": produced / (answer_s - first_s),
        "peak_gib": torch.cuda.max_memory_allocated() / GIB if cuda else None,
        "estimated_gib": predicted.total / GIB,
        "flop": predicted.flop,
    }


def matrix_product_rate(device: torch.device, dtype: torch.dtype) -> float:
    """TFLOP/s of a large square product of random matrices: what the hardware gives in practice."""
    side = 8192 if device.type == "cuda" else 1024
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    times = []
    for _ in range(13):
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        left @ right
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return 2 * side**3 / statistics.median(times[3:]) / 1e12


def print_table(rows: list[dict], product: float) -> None:
    print(f"\nmatrix product: {product:.2f} TFLOP/s")
    head = (
        "frames",
        "cached",
        "encode s",
        "summarise s",
        "first s",
        "total s",
        "decode tok/s",
        "peak GiB",
        "est. GiB",
        "TFLOP/s",
        "of product",
    )
    print(" | ".join(f"{name:>12}" for name in head))
    for row in rows:
        peak = "-" if row["peak_gib"] is None else f"{row['peak_gib']:.2f}"
        cells = (
            str(row["frames"]),
            str(row["cached_positions"]),
            f"{row['encode_s']:.3f}",
            f"{row['summarise_s']:.3f}",
            f"{row['first_token_s']:.3f}",
            f"{row['total_s']:.3f}",
            f"{row['decode_tokens_per_s']:.1f}",
            peak,
            f"{row['estimated_gib']:.2f}",
            f"{row['tflops']:.2f}",
            f"{100 * row['share_of_product']:.0f} %",
        )
        print(" | ".join(f"{cell:>12}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
