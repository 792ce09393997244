"""Measure time and memory of encoding, summarising and decoding, with random weights of a given shape.

    python scripts/benchmark.py --config configs/qwen2-7b.json                          128, 512, 2048 frames
    python scripts/benchmark.py --config configs/qwen2-7b.json --part decode question --output results.json

Parts: summarise (pixels to first token), memory (peaks beside `videoxl estimate`), decode (tokens a second, of one
question and of eight), question (a held memory and its file), pipeline (from a video file, stage by stage), scaling
(time against frames and ratio), peers (the uncompressed model), four_bit (4-bit weights: peak, time, error), fp8
(reading with FP8 products: time and error; runs last, since the model stays in FP8). Results are merged into the JSON
file part by part, and printed as tables. Needs no checkpoint; on a CPU choose a small configuration and few frames.
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import sys
import warnings
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import transformers
from benchmark_model import Bench, Row, matrix_product_rate, random_model
from benchmark_parts import PARTS
from benchmark_scaling import fit

from videoxl import VideoXLConfig
from videoxl.errors import ArgumentError, DataError
from videoxl.utils.cli_errors import one_line_errors


@one_line_errors
def main(arguments: list[str] | None = None) -> None:
    given = parse(arguments)
    parts = [*given.part, *(["peers"] if given.peers and "peers" not in given.part else [])]
    parts.sort(key=lambda part: part == "fp8")
    report = stored(given.output, given.config)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    warnings.filterwarnings("ignore", message=".*rope_scaling.*")
    config = VideoXLConfig.from_pretrained(given.config)
    config._attn_implementation = "sdpa"
    bench = Bench(
        random_model(config, device, dtype),
        given.ratio,
        given.frames,
        given.new_tokens,
        given.rounds,
        not given.no_warm_up,
        given.video,
        given.backend,
        given.sampling,
    )
    product = matrix_product_rate(device, dtype)
    for name in parts:
        started = datetime.now(UTC)
        rows = PARTS[name](bench)
        for row in rows:
            if "tflops" in row:
                row["share_of_product"] = row["tflops"] / product
        report["parts"][name] = {
            "date": started.strftime("%Y-%m-%d"),
            "command": shlex.join(
                ["python", "scripts/benchmark.py", *(sys.argv[1:] if arguments is None else arguments)]
            ),
            "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or "cpu",
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "dtype": str(dtype).removeprefix("torch."),
            "matrix_product_tflops": product,
            "part_s": round((datetime.now(UTC) - started).total_seconds(), 1),
            "rows": rows,
        }
        print(f"\n{name}, matrix product {product:.2f} TFLOP/s\n{table(rows)}", flush=True)
        if name == "scaling":
            print(fit([(row["frames"], row["ratio"], row["read_s"]) for row in rows]).describe(given.ratio))
        if given.output:  # after every part: a later one may run out of memory
            draft = given.output.with_suffix(".part")
            draft.write_text(json.dumps(report, indent=1) + "\n")
            draft.replace(given.output)
    if {"decode", "peers", "summarise"} <= report["parts"].keys():
        print(against_peers(report["parts"]))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True, help="a model size from configs/, or any config.json")
    parser.add_argument("--part", nargs="+", default=["summarise"], choices=[*PARTS], help="default: summarise")
    parser.add_argument("--peers", action="store_true", help="also measure the uncompressed model, in the same run")
    parser.add_argument(
        "--frames",
        type=lambda text: [int(n) for n in text.split(",")],
        help="comma-separated numbers of frames (default: each part's own)",
    )
    parser.add_argument("--ratio", type=int, default=8, help="compression ratio (default 8)")
    parser.add_argument("--new-tokens", type=int, default=128, help="tokens to decode (default 128)")
    parser.add_argument("--rounds", type=int, default=3, help="measured runs; their median counts (default 3)")
    parser.add_argument("--no-warm-up", action="store_true", help="count the first run too")
    parser.add_argument("--video", type=Path, help="video for the part pipeline (default: a generated one)")
    parser.add_argument("--backend", default="pyav", help="decoder for the part pipeline (default: pyav)")
    parser.add_argument("--sampling", default="uniform", help="uniform or keyframes, for the part pipeline")
    parser.add_argument("--output", type=Path, help="JSON file to merge the results into")
    given = parser.parse_args(arguments)
    for name, value in (
        ("frames", min(given.frames or [1])),
        ("rounds", given.rounds),
        ("new-tokens", given.new_tokens),
    ):
        if value < 1:
            raise ArgumentError(f"--{name} is {value}; it must be at least 1")
    if not given.config.exists():
        raise ArgumentError(f"no such configuration: {given.config}; configs/ holds some")
    return given


def stored(path: Path | None, config: Path) -> dict:
    """What the file holds already. Raises `DataError` for results of another shape, or something else."""
    report = {"config": str(config), "parts": {}}
    if path is None or not path.is_file():
        return report
    try:
        found = json.loads(path.read_text())
        known = {"config": found["config"], "parts": dict(found["parts"])}
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is no file of benchmarks ({error!r}); name another --output") from error
    if Path(known["config"]).resolve() != config.resolve():
        raise DataError(f"{path} holds results of {known['config']}, not of {config}; name another --output")
    return known


def table(rows: Sequence[Row]) -> str:
    """Columns as the rows name them."""
    heads = list(rows[0])
    cells = [[_text(row[head]) for head in heads] for row in rows]
    widths = [max(len(head), *(len(line[i]) for line in cells)) for i, head in enumerate(heads)]
    lines = [heads, *cells]
    return "\n".join(" | ".join(cell.rjust(width) for cell, width in zip(line, widths)) for line in lines)


def _text(value: float | int | str | None) -> str:
    if value is None or isinstance(value, str):
        return value or "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def against_peers(parts: dict) -> str:
    """How many times faster and smaller than the uncompressed model, at the lengths that both have."""
    lines = []
    for peer in parts["peers"]["rows"]:
        frames = peer["frames"]
        read = next(
            (r for r in parts["summarise"]["rows"] if (r["frames"], r["ratio"]) == (frames, peer["ratio"])), None
        )
        made = next((r for r in parts["decode"]["rows"] if r["frames"] == frames and r["questions"] == 1), None)
        if read and made and len({parts[name]["device"] for name in ("peers", "summarise", "decode")}) == 1:
            ours = read["summarise_s"] + read["first_token_s"]
            lines.append(
                f"{frames} frames, uncompressed to ours: prefill {peer['prefill_s'] / ours:.2f} x the "
                f"time, a new token {made['tokens_per_s'] / peer['tokens_per_s']:.2f} x"
            )
            if peer["peak_gib"] and read["peak_gib"]:
                lines[-1] += f", memory {peer['peak_gib'] / read['peak_gib']:.2f} x"
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
