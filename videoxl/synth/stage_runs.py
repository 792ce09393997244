"""The stages of the small model as runs of the training program, each from the stage before.

All but one share one process, since starting Python would take longer than some of them. Tower and decoder first learn
apart: those two stages run beside each other, since neither keeps a GPU busy.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import sys
import threading
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from videoxl.errors import CheckpointError
from videoxl.synth.base import SHAPES_BY_SIZE, write_base
from videoxl.synth.stages import STAGES, SYNTHETIC, Stage
from videoxl.train.checkpoints import holds_result
from videoxl.train.parts import part_of
from videoxl.train.run import train

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
    "logging_nan_inf_filter": False,  # reading the loss of every step makes the GPU wait for the next step
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
    outputs = [folder / f"{number + 1}-{stage.name}" for number, stage in enumerate(STAGES[size])]
    tower, decoder, *rest = zip(STAGES[size], outputs)
    beside = run_apart(outputs[1].with_suffix(".log"), decoder[0], base, decoder[1], size, seed, workers)
    try:
        run_stage(tower[0], base, tower[1], size, seed, workers)
        wait_for(beside, outputs[1].with_suffix(".log"))
    finally:
        if beside is not None and beside.is_alive():
            beside.terminate()
    take_part("mm_vision_tower", outputs[0], outputs[1])
    before = outputs[1]
    for stage, output in rest:
        run_stage(stage, before, output, size, seed, workers)
        before = output
    return before


def run_stage(stage: Stage, base: Path, output: Path, size: str, seed: int, workers: int) -> None:
    """Train from `base` to `output`, unless it is there; how long it took stands beside the result."""
    if not holds_result(output):
        started = time.perf_counter()
        train(_arguments(stage, base, output, size, seed, workers))
        seconds = time.perf_counter() - started
        (output / "seconds.json").write_text(json.dumps({"seconds": round(seconds, 2)}) + "\n")
        print(f"{stage.name}: {stage.steps} steps in {seconds:.1f} s", file=sys.stderr, flush=True)
    if not stage.compresses:
        forget_beacons(output)


def run_apart(log: Path, stage: Stage, base: Path, output: Path, *given) -> multiprocessing.Process | None:
    """`run_stage` in a process of its own, what it prints in `log`; None where its result is there."""
    if holds_result(output):
        return None
    print(f"{stage.name}: beside it, see {log}", file=sys.stderr, flush=True)
    log.write_bytes(b"")  # there even if the process does not get as far as this module
    process = multiprocessing.get_context("spawn").Process(target=_logged, args=(log, stage, base, output, *given))
    process.start()
    return process


def wait_for(process: multiprocessing.Process | None, log: Path) -> None:
    """Raises `CheckpointError` if it failed, with the last line that it wrote."""
    if process is None:
        return
    process.join()
    lines = log.read_text(errors="replace").strip().splitlines()
    if process.exitcode:
        raise CheckpointError(f"{log.stem} ended with status {process.exitcode}; {log} ends with: {lines[-1:]}")
    print(lines[-1], file=sys.stderr, flush=True)


def _logged(log: Path, *given) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with log.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    prepare_device()
    run_stage(*given)


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def prepare_device() -> None:
    """What every process of a run sets before it trains."""
    torch.backends.cuda.enable_cudnn_sdp(False)  # it makes a plan for every length of text, which takes longer than it


def _arguments(stage: Stage, base: Path, output: Path, size: str, seed: int, workers: int) -> list[str]:
    device = ["--bf16", "True", "--optim", "adamw_torch_fused"] if torch.cuda.is_available() else ["--use_cpu", "True"]
    return [
        *("--model_name_or_path", str(base), "--data_path", f"{SYNTHETIC}{size}/{stage.name}"),
        *("--output_dir", str(output), "--seed", str(seed), "--dataloader_num_workers", str(workers)),
        *device,
        *(text for flag, value in COMMON.items() for text in (f"--{flag}", str(value))),
        *stage.arguments(),
    ]


def take_part(part: str, source: Path, target: Path) -> None:
    """Put one part of the model (one of `videoxl.train.arguments.PARTS`) of `source` into `target`."""
    ours, theirs = load_file(target / WEIGHTS), load_file(source / WEIGHTS)
    taken = {name: weight for name, weight in theirs.items() if part_of(name) == part}
    if not all(torch.equal(ours[name], weight) for name, weight in taken.items()):
        _replace(target / WEIGHTS, ours | taken)


def forget_beacons(folder: Path) -> None:
    """Leave the beacons' weights out of a checkpoint, so that they start as copies of what the decoder learnt."""
    weights = load_file(folder / WEIGHTS)
    kept = {name: weight for name, weight in weights.items() if "beacon_" not in name}
    if len(kept) < len(weights):
        _replace(folder / WEIGHTS, kept)


def _replace(path: Path, weights: dict) -> None:
    draft = path.with_suffix(".part")
    save_file(weights, draft, metadata={"format": "pt"})
    draft.replace(path)
