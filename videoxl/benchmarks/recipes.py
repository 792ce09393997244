"""Run one lmms-eval benchmark by its recipe (`configs/eval/NAME.yaml`): frames, ratio and prompt behind a score.

python -m videoxl.benchmarks.recipes videomme CHECKPOINT [flags of lmms_eval]
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from videoxl.errors import CheckpointError, DataError
from videoxl.utils.cli_errors import one_line_errors
from videoxl.utils.files import claim_output, read_json
from videoxl.utils.resources import resource

_SCORE_FLAGS = ("--limit", "--offset", "--model_args", "--gen_kwargs", "--num_fewshot", "--tasks", "--config")
FOLDER = "configs/eval"  # of the package's resources


@dataclass(frozen=True)
class Recipe:
    """The settings that a score depends on.

    Attributes:
        task: lmms-eval's task. metric: its name in the results file. scale: factor from its value to per cent.
        max_frames_num, beacon_ratio: settings for every video. generation: lmms-eval's `--gen_kwargs`.
        prompt: origin of the prompt, for the reader; the task defines it.
        published: the published 7B checkpoint's score. tolerance: points by which a run may differ from it.
        source: where the score was published.
    """

    task: str
    metric: str
    scale: float
    max_frames_num: int
    beacon_ratio: int
    generation: str
    prompt: str
    published: float
    tolerance: float
    source: str

    def command(self, checkpoint: str, output: Path, more: Sequence[str] = ()) -> list[str]:
        """Arguments of `python -m lmms_eval`."""
        model = f"pretrained={checkpoint},max_frames_num={self.max_frames_num},beacon_ratio={self.beacon_ratio}"
        return [
            *("--model", "videoxl", "--model_args", f"{model},strict=True"),
            *("--tasks", self.task, "--gen_kwargs", self.generation, "--batch_size", "1"),
            *("--log_samples", "--output_path", str(output), *more),
        ]


def load_recipe(name: str, folder: Path | None = None) -> Recipe:
    """The recipe of a benchmark. Raises `DataError`: an unknown name (lists the known ones) or a wrong key."""
    path = (folder or resource(FOLDER)) / f"{name}.yaml"
    if not path.is_file():
        raise DataError(f"no recipe {name!r}; there are {', '.join(recipe_names(folder))}")
    try:
        return Recipe(**yaml.safe_load(path.read_text()))
    except (TypeError, yaml.YAMLError) as error:
        raise DataError(f"{path} is no recipe: {error}") from error


def recipe_names(folder: Path | None = None) -> list[str]:
    return sorted(path.stem for path in (folder or resource(FOLDER)).glob("*.yaml"))


def read_score(output: Path, recipe: Recipe, since: float = 0.0) -> tuple[float, int | None]:
    """The score in the newest results file below `output`, in per cent, and the number of questions if it says so.

    Args:
        since: Unix time in seconds; older files belong to other runs.

    Raises:
        DataError: no such file, or no such score in it.
    """
    written = {path: path.stat().st_mtime for path in output.rglob("*_results.json")}
    files = sorted((path for path, moment in written.items() if moment >= since), key=written.get)
    if not files:
        raise DataError(f"lmms-eval left no results in {output}; its messages above say why")
    content = read_json(files[-1], "the results")
    try:
        found = dict(content["results"].get(recipe.task, {}).items())
        number = ((content.get("n-samples") or {}).get(recipe.task) or {}).get("effective")
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{files[-1]} is no file of lmms-eval's results: {error!r}") from error
    for key, value in found.items():
        if key.split(",")[0] == recipe.metric and isinstance(value, (int, float)):
            return value * recipe.scale, number if isinstance(number, int) else None
    raise DataError(f"{files[-1]} has no {recipe.metric} of {recipe.task}; it has {', '.join(found)}")


@one_line_errors
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="eval_lmms.sh", description=__doc__.split("\n")[0])
    parser.add_argument("name", help="recipe: " + ", ".join(recipe_names()))
    parser.add_argument("checkpoint", help="checkpoint folder")
    parser.add_argument("--output", type=Path, help="folder of results (default: logs/NAME)")
    parser.add_argument("--processes", type=int, help="one per GPU (default: PROCESSES, or 1)")
    parser.add_argument("--print", dest="only_print", action="store_true", help="print the command, run nothing")
    given, more = parser.parse_known_args(arguments)
    recipe = load_recipe(given.name)
    processes = _processes() if given.processes is None else given.processes
    output = given.output or Path("logs") / given.name
    command = [sys.executable, "-m"]
    if processes > 1:
        command += ["torch.distributed.run", "--nproc_per_node", str(processes), "-m"]
    command += ["lmms_eval", *recipe.command(given.checkpoint, output, more)]
    if given.only_print:
        print(" ".join(command))
        return 0
    if not (Path(given.checkpoint) / "config.json").is_file():
        raise CheckpointError(f"{given.checkpoint} is not a checkpoint's folder: it has no config.json")
    claim_output(output)
    return _run(command, output, recipe, more)


def _run(command: Sequence[str], output: Path, recipe: Recipe, more: Sequence[str]) -> int:
    started = time.time() - 1  # file systems round
    status = subprocess.run(command).returncode
    score, number = read_score(output, recipe, started)
    print(verdict(recipe, score, number, status, more))
    return status


def verdict(recipe: Recipe, score: float, number: int | None, status: int, more: Sequence[str]) -> str:
    """The score, how far it may be off by chance, and whether it is the published one.

    Args:
        score: in per cent. number: questions; None: not known.
        status: lmms-eval's exit status; 0 where every input could be read.
        more: flags beyond the recipe.
    """
    said = f"{recipe.task}: {score:.1f}"
    if number:
        share = min(max(score / 100, 0.0), 1.0)
        spread = 196 * math.sqrt(share * (1 - share) / number)
        said += f" of {number:,} questions (95 %: {score - spread:.1f} to {score + spread:.1f})"
    said += f"; the published checkpoint's score is {recipe.published} ({recipe.source})"
    flags = [flag.partition("=")[0] for flag in more if flag.startswith("--")]
    changed = [flag for flag in flags if any(name.startswith(flag) for name in _SCORE_FLAGS)]  # also abbreviated
    if status:
        return f"{said}; not compared: inputs could not be read, or lmms-eval failed (status {status})"
    if changed:
        return f"{said}; not compared: {' '.join(changed)} departs from the recipe"
    within = abs(score - recipe.published) <= recipe.tolerance
    return f"{said}, {'within' if within else 'not within'} {recipe.tolerance} points"


def _processes() -> int:
    given = os.environ.get("PROCESSES", "1")
    if not given.isdecimal() or not given.isascii() or not int(given):
        raise DataError(f"PROCESSES is {given!r}; it must be a whole number of at least 1")
    return int(given)


if __name__ == "__main__":
    sys.exit(main())
