"""Runs the stages of the small model with the training program, each from the stage before.

All runs share one process, since starting Python takes longer than some of the stages.
"""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from videoxl.synth import source  # noqa: F401  (it registers the data source of the stages)
from videoxl.synth.base import SHAPES_BY_SIZE, write_base
from videoxl.synth.stages import STAGES, SYNTHETIC, Stage
from videoxl.train.checkpoints import holds_result
from videoxl.train.cli import train
from videoxl.utils.files import whole_file, write_json

WEIGHTS = "model.safetensors"
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
    "logging_nan_inf_filter": False,  # the filter reads the loss in every step, which delays the next step on the GPU
    "save_strategy": "no",
    "report_to": "none",
    "dataloader_pin_memory": False,
    "disable_tqdm": False,
}


def train_stages(folder: Path, size: str, seed: int, workers: int) -> Path:
    """Run what is not finished yet; returns the last stage's folder."""
    base = folder / "base"
    if not (base / WEIGHTS).is_file():
        shutil.rmtree(base, ignore_errors=True)
        write_base(base, SHAPES_BY_SIZE[size], seed)
    before = base
    for number, stage in enumerate(STAGES[size]):
        output = folder / f"{number + 1}-{stage.name}"
        run_stage(stage, before, output, size, seed, workers)
        before = output
    return before


def run_stage(stage: Stage, base: Path, output: Path, size: str, seed: int, workers: int) -> None:
    """Train from `base` to `output` if there is no result yet; `seconds.json` beside it holds the time."""
    if not holds_result(output):
        started = time.perf_counter()
        train(_arguments(stage, base, output, size, seed, workers))
        seconds = time.perf_counter() - started
        write_json(output / "seconds.json", {"seconds": round(seconds, 2)}, indent=None)
        print(f"{stage.name}: {stage.steps} steps in {seconds:.1f} s", file=sys.stderr, flush=True)
    if not stage.compresses:
        forget_beacons(output)


def prepare_device() -> None:
    """Set PyTorch's global options for a run."""
    torch.backends.cuda.enable_cudnn_sdp(False)  # its plan for each new text length is slower than it


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
    """Remove the beacons' weights from a checkpoint, so that they are initialised as copies of the decoder's."""
    weights = load_file(folder / WEIGHTS)
    kept = {name: weight for name, weight in weights.items() if "beacon_" not in name}
    if len(kept) < len(weights):
        _replace(folder / WEIGHTS, kept)


def _replace(path: Path, weights: dict) -> None:
    with whole_file(path) as draft:
        save_file(weights, draft, metadata={"format": "pt"})
