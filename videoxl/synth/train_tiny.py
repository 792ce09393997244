"""Train the small model from nothing: base, stages, evaluation, model card. The program behind `scripts/train_tiny.sh`.

Every stage is a run of the training program (`videoxl.train`) that starts from the stage before; all share one process,
since starting Python would take longer than some of them. A run that was ended goes on with the first unfinished stage.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from videoxl.errors import ArgumentError
from videoxl.program import one_line_errors
from videoxl.synth.base import SHAPES_BY_SIZE, write_base
from videoxl.synth.bundle import write_bundle
from videoxl.synth.evaluate import Scores, evaluate
from videoxl.synth.stages import STAGES, SYNTHETIC, Stage
from videoxl.train.checkpoints import holds_result
from videoxl.train.run import train

# Flags that all stages share.
COMMON = {
    "adam_beta1": 0.9,
    "adam_beta2": 0.98,
    "weight_decay": 0.05,
    "max_grad_norm": 1.0,
    "mm_vision_tower_lr": 1e-3,
    "gradient_checkpointing": False,
    "num_train_epochs": 1,
    "per_device_train_batch_size": 1,  # a stage brings its own batches
    "model_max_length": 262144,
    "logging_steps": 10,
    "logging_nan_inf_filter": False,  # reading the loss of every step makes the GPU wait for the next step
    "save_strategy": "no",
    "report_to": "none",
    "dataloader_pin_memory": False,
    "disable_tqdm": False,
}
# What a run looks at itself; docs/benchmarks.md has more.
QUICK = {
    "gpu": (
        ("needle", (64, 256, 1024), (8, 16), 140, ("beacon",)),
        ("needle", (64,), (8,), 140, ("none", "drop", "mean", "no video")),
        ("ordering", (64,), (8,), 60, ("beacon",)),
        ("counting", (64,), (8,), 60, ("beacon",)),
        ("advertisement", (64,), (8,), 60, ("beacon",)),
    ),
    "cpu": (("needle", (16,), (8,), 14, ("beacon", "no video")),),
}


def claim_folder(folder: Path, run: dict) -> None:
    """Write down what `folder` is for. Raises `ArgumentError` where it holds another run, or anything else."""
    path = folder / "run.json"
    if path.is_file():
        if json.loads(path.read_text()) != run:
            raise ArgumentError(f"{folder} holds another run ({path.read_text().strip()}); name another folder")
    elif folder.exists() and any(folder.iterdir()):
        raise ArgumentError(f"{folder} is not empty and holds no run of this program; name another folder")
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(run) + "\n")


def train_stages(folder: Path, size: str, seed: int, workers: int) -> Path:
    """Run what is not finished yet; returns the last stage's folder."""
    base = folder / "base"
    if not (base / "model.safetensors").is_file():
        shutil.rmtree(base, ignore_errors=True)
        write_base(base, SHAPES_BY_SIZE[size], seed)
    before = base
    for number, stage in enumerate(STAGES[size]):
        output = folder / f"{number + 1}-{stage.name}"
        if not holds_result(output):
            started = time.perf_counter()
            train(_arguments(stage, before, output, size, seed, workers))
            seconds = time.perf_counter() - started
            (output / "seconds.json").write_text(json.dumps({"seconds": round(seconds, 2)}) + "\n")
            print(f"{stage.name}: {stage.steps} steps in {seconds:.1f} s", file=sys.stderr, flush=True)
        if not stage.compresses:
            forget_beacons(output)
        before = output
    return before


def _arguments(stage: Stage, base: Path, output: Path, size: str, seed: int, workers: int) -> list[str]:
    device = ["--bf16", "True", "--optim", "adamw_torch_fused"] if torch.cuda.is_available() else ["--use_cpu", "True"]
    return [
        *("--model_name_or_path", str(base), "--data_path", f"{SYNTHETIC}{size}/{stage.name}"),
        *("--output_dir", str(output), "--seed", str(seed), "--dataloader_num_workers", str(workers)),
        *device,
        *(text for flag, value in COMMON.items() for text in (f"--{flag}", str(value))),
        *stage.arguments(),
    ]


def forget_beacons(folder: Path) -> None:
    """Leave the beacons' weights out of a checkpoint, so that they start as copies of what the decoder learnt."""
    path = folder / "model.safetensors"
    weights = load_file(path)
    kept = {name: weight for name, weight in weights.items() if "beacon_" not in name}
    if len(kept) == len(weights):
        return
    draft = path.with_suffix(".part")
    save_file(kept, draft, metadata={"format": "pt"})
    draft.replace(path)


@one_line_errors
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="train_tiny.sh", description=__doc__.split("\n")[0])
    parser.add_argument("output", type=Path, help="folder of the run; an unfinished run in it goes on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cpu", action="store_true", help="a model and stages so small that two cores need minutes")
    parser.add_argument("--workers", type=int, default=None, help="processes that make up data (default: by size)")
    given = parser.parse_args(arguments)
    started = time.perf_counter()
    size = "cpu" if given.cpu else "gpu"
    workers = given.workers if given.workers is not None else (1 if given.cpu else 12)
    if not given.cpu and not torch.cuda.is_available():
        raise ArgumentError("training the small model needs a GPU; --cpu trains a much smaller one to try it out")
    torch.backends.cuda.enable_cudnn_sdp(False)  # it makes a plan for every length of text, which takes longer than it
    claim_folder(given.output, {"size": size, "seed": given.seed})
    last = train_stages(given.output, size, given.seed, workers)
    scores = Scores(given.output / "scores.json", {"model": last.name, "size": size, "seed": given.seed})
    for task, frames, ratios, samples, reductions in QUICK[size]:
        evaluate(last, scores, task, frames, ratios, samples, reductions, workers=workers)
    write_bundle(last, given.output, given.output / "model", size, given.seed, scores.cells)
    minutes = (time.perf_counter() - started) / 60
    print(
        f"wrote {given.output / 'model'} with its model card, loss.png and accuracy.png beside it ({minutes:.1f} min)"
    )


if __name__ == "__main__":
    sys.exit(main())
