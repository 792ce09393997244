"""Train the small model from scratch: base, stages, evaluation, model card. The program behind `scripts/train_tiny.sh`.

Rerun the same command to resume at the first unfinished stage.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import torch

from videoxl.errors import ArgumentError
from videoxl.synth.bundle import write_bundle
from videoxl.synth.evaluate import Scores, evaluate
from videoxl.synth.stage_runs import prepare_device, train_stages
from videoxl.utils.cli_errors import one_line_errors

# Decides which of several seeds is bundled (`choose.py`): only cards and videos of the validation world.
VALIDATION = {
    "gpu": (
        ("needle", (64, 256), (8, 16), 200),
        ("ordering", (64,), (8,), 100),
        ("counting", (64,), (8,), 100),
        ("advertisement", (64,), (8,), 100),
    ),
    "cpu": (("needle", (16,), (8,), 14),),
}
# Tests that a run does itself (70: every family at every depth once); docs/benchmarks/small-model.md has more.
QUICK = {
    "gpu": (
        ("needle", (64, 256), (8, 16), 70, ("beacon",)),
        ("needle", (1024,), (8,), 28, ("beacon",)),
        ("ordering", (64,), (8,), 60, ("beacon",)),
        ("counting", (64,), (8,), 60, ("beacon",)),
        ("advertisement", (64,), (8,), 60, ("beacon",)),
    ),
    "cpu": (("needle", (16,), (8,), 14, ("beacon", "no video")),),
}


def claim_folder(folder: Path, run: dict) -> None:
    """Record the run in `folder`. Raises `ArgumentError` if it holds another run or anything else."""
    path = folder / "run.json"
    if path.is_file():
        if json.loads(path.read_text()) != run:
            raise ArgumentError(f"{folder} holds another run ({path.read_text().strip()}); name another folder")
    elif folder.exists() and any(folder.iterdir()):
        raise ArgumentError(f"{folder} is not empty and holds no run of this program; name another folder")
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(run) + "\n")


@one_line_errors
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="train_tiny.sh", description=__doc__.split("\n")[0])
    parser.add_argument("output", type=Path, help="folder of the run; an unfinished run is resumed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cpu", action="store_true", help="a model and stages small enough for minutes on two cores")
    parser.add_argument("--workers", type=int, default=None, help="processes that generate data (default: by size)")
    given = parser.parse_args(arguments)
    started = time.perf_counter()
    size = "cpu" if given.cpu else "gpu"
    workers = given.workers if given.workers is not None else (1 if given.cpu else 12)
    if not given.cpu and not torch.cuda.is_available():
        raise ArgumentError("training the small model needs a GPU; --cpu trains a much smaller one to try it out")
    prepare_device()
    claim_folder(given.output, {"size": size, "seed": given.seed})
    last = train_stages(given.output, size, given.seed, workers)
    scores = Scores(given.output / "scores.json", {"model": last.name, "size": size, "seed": given.seed})
    for task, frames, ratios, samples, reductions in QUICK[size]:
        evaluate(last, scores, task, frames, ratios, samples, reductions, workers=workers)
    validation = Scores(given.output / "validation.json", {"model": last.name, "size": size, "seed": given.seed})
    for task, frames, ratios, samples in VALIDATION[size]:
        evaluate(last, validation, task, frames, ratios, samples, workers=workers, world="validation")
    write_bundle(last, given.output, given.output / "model", size, given.seed, scores.cells)
    minutes = (time.perf_counter() - started) / 60
    print(
        f"wrote {given.output / 'model'} with its model card, loss.png and accuracy.png beside it ({minutes:.1f} min)"
    )


if __name__ == "__main__":
    sys.exit(main())
