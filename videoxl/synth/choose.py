"""Choose which of several trained seeds to bundle: the best mean over all tasks of the validation world.

    python -m videoxl.synth.choose runs/seed0 runs/seed1 runs/seed2

Each run folder holds the `validation.json` that `scripts/train_tiny.sh` wrote. Tests and
training stages use neither the cards nor the videos of the validation world, so test scores play no part in the choice.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from videoxl.errors import DataError
from videoxl.utils.cli_errors import one_line_errors

TASKS = ("needle", "ordering", "counting", "advertisement")


def task_scores(cells: Sequence[dict]) -> dict[str, float]:
    """Share of right videos by task: the mean over its cells (one per length and ratio).

    Raises:
        DataError: cells of another world than validation, or none at all.
    """
    shares: dict[str, list[float]] = {}
    for cell in cells:
        if cell.get("world") != "validation":
            raise DataError(
                f"a score of the {cell.get('world', 'test')} world cannot choose a model; give validation ones"
            )
        shares.setdefault(cell["task"], []).append(cell["right"] / cell["total"])
    if not shares:
        raise DataError("there are no validation scores; let scripts/train_tiny.sh finish")
    return {task: sum(shares[task]) / len(shares[task]) for task in TASKS if task in shares}


def mean_score(cells: Sequence[dict]) -> float:
    """Mean over the tasks, each counted once."""
    scores = task_scores(cells)
    return sum(scores.values()) / len(scores)


def best_run(runs: dict[str, Sequence[dict]]) -> str:
    """Name of the run with the highest mean; of several, the first.

    Raises:
        DataError: runs that were not scored on the same cells.
    """
    scored = {
        name: sorted((c["task"], c["frames"], c["ratio"], c["total"]) for c in cells) for name, cells in runs.items()
    }
    reference = next(iter(scored))
    for name, cells in scored.items():
        if cells != scored[reference]:
            raise DataError(f"{name} was scored on other cells than {reference}; score both alike")
    return max(runs, key=lambda name: mean_score(runs[name]))


@one_line_errors
def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m videoxl.synth.choose", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("runs", type=Path, nargs="+", help="run folders of scripts/train_tiny.sh, or validation files")
    given = parser.parse_args(arguments)
    runs: dict[str, Sequence[dict]] = {}
    for path in given.runs:
        file = path / "validation.json" if path.is_dir() else path
        try:
            runs[str(path)] = json.loads(file.read_text())["cells"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{file} holds no validation scores ({error}); name a finished run") from error
    for name, cells in runs.items():
        each = "  ".join(f"{task} {share:.3f}" for task, share in task_scores(cells).items())
        print(f"{mean_score(cells):.4f}  {name}  ({each})")
    print(f"best: {best_run(runs)}")


if __name__ == "__main__":
    sys.exit(main())
