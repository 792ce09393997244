"""The heat map and the summary of a folder of results.

python -m videoxl.benchmarks.niah.plot RESULTS
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from videoxl.errors import DataError, MissingDependencyError
from videoxl.utils.cli_errors import one_line_errors
from videoxl.utils.files import write_json

PATTERN = "*_results.json"
NUMBERS = {"score": float, "context_length": int, "depth_percent": float}


def load_results(folder: Path) -> list[dict]:
    """Results of all cells, sorted by length and depth. Raises `DataError` if there are none or one is damaged."""
    results = []
    for path in sorted(folder.glob(PATTERN)):
        try:
            stored = json.loads(path.read_text())
            numbers = {key: kind(stored[key]) for key, kind in NUMBERS.items()}
            results.append({**stored, **numbers, "model_response": list(stored["model_response"])})
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} is not a cell's result ({error!r}); remove it and run its cell again") from error
    if not results:
        raise DataError(f"no results in {folder}; run the evaluation first, or name another folder")
    return sorted(results, key=lambda result: (result["context_length"], result["depth_percent"]))


def summarise(results: Sequence[dict]) -> dict:
    """Means over cells: of all, by length, by depth."""
    return {
        "model": results[0].get("model", ""),
        "beacon_ratio": results[0].get("beacon_ratio"),
        "cells": len(results),
        "generations": sum(len(result["model_response"]) for result in results),
        "score": _mean([result["score"] for result in results]),
        "by_length": _by(results, lambda result: str(result["context_length"])),
        "by_depth": _by(results, lambda result: f"{result['depth_percent']:g}"),
    }


def check_plotting() -> None:
    """Raise `MissingDependencyError` at the start of a run, not after hours of work."""
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingDependencyError('the heat map needs matplotlib: pip install -e ".[eval]"')


def draw_heat_map(results: Sequence[dict], picture: Path) -> None:
    """Depth against length, from 0 (red) through yellow to 1 (green)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.colors import LinearSegmentedColormap

    lengths = sorted({result["context_length"] for result in results})
    depths = sorted({result["depth_percent"] for result in results})
    scores = [[float("nan")] * len(lengths) for _ in depths]
    for result in results:
        scores[depths.index(result["depth_percent"])][lengths.index(result["context_length"])] = result["score"]
    colours = LinearSegmentedColormap.from_list("score", ["#d7191c", "#ffdf4d", "#1a9641"])
    colours.set_bad("0.85")
    size = (max(6.0, 0.75 * len(lengths) + 2.5), max(3.0, 0.6 * len(depths) + 1.8))
    figure, axes = pyplot.subplots(figsize=size, dpi=130, layout="constrained")
    image = axes.imshow(scores, cmap=colours, vmin=0, vmax=1, aspect="auto")
    for row, line in enumerate(scores):
        for column, score in enumerate(line):
            if score == score:
                axes.text(column, row, f"{score:.2f}", ha="center", va="center", fontsize=8)
    axes.set_xticks(range(len(lengths)), lengths)
    axes.set_yticks(range(len(depths)), [f"{depth:g}" for depth in depths])
    axes.set(xlabel="length of the haystack (frames)", ylabel="depth of the needle (%)")
    about = summarise(results)
    axes.set_title(
        f"{about['model']}, ratio {about['beacon_ratio']}: mean {about['score']:.3f} over {about['generations']} "
        "answers",
        fontsize=10,
    )
    figure.colorbar(image, label="share found")
    figure.savefig(picture)
    pyplot.close(figure)


def report(folder: Path, lengths: Sequence[int] | None = None, depths: Sequence[int] | None = None) -> dict:
    """Write `heatmap.png` and `summary.json` into the folder; returns the summary.

    Args:
        lengths, depths: those of the cells to report; None: all cells in the folder.
    """
    results = [
        result
        for result in load_results(folder)
        if (lengths is None or result["context_length"] in lengths)
        and (depths is None or result["depth_percent"] in depths)
    ]
    summary = summarise(results)
    write_json(folder / "summary.json", summary)
    draw_heat_map(results, folder / "heatmap.png")
    return summary


def describe(summary: dict) -> str:
    """The summary as lines of text."""
    lines = [f"{'frames':>8}  found"]
    lines += [f"{length:>8}  {score:.3f}" for length, score in summary["by_length"].items()]
    lines += [f"{'depth %':>8}  found"]
    lines += [f"{depth:>8}  {score:.3f}" for depth, score in summary["by_depth"].items()]
    return "\n".join([*lines, f"{'all':>8}  {summary['score']:.3f} ({summary['generations']} answers)"])


def _by(results: Sequence[dict], key: Callable[[dict], str]) -> dict[str, float]:
    groups: dict[str, list[float]] = {}
    for result in results:
        groups.setdefault(key(result), []).append(result["score"])
    return {name: _mean(scores) for name, scores in sorted(groups.items(), key=lambda item: float(item[0]))}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


@one_line_errors
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m videoxl.benchmarks.niah.plot", description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="folder of results")
    given = parser.parse_args(arguments)
    print(describe(report(given.folder)))


if __name__ == "__main__":
    sys.exit(main())
