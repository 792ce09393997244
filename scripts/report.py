"""Write the tables of the small model in docs/benchmarks/small-model.md from result files.

    python scripts/report.py            rewrite the part between the markers
    python scripts/report.py --check    exit with status 1 if the document is out of date

`scripts/measure_tiny.sh` makes the files. From docs/results it reads what exists of: tiny-*.json (scores of
`videoxl.synth.evaluate`, one file per seed), validation-*.json (what chose the bundle), niah-r*/ (result folders of
`NIAH.run`, one per ratio) and tiny-vnbench.score.json.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from videoxl.synth.choose import best_run, mean_score, task_scores
from videoxl.synth.evaluate import WITHOUT_RATIO, interval

ROOT = Path(__file__).resolve().parent.parent
START, END = "<!-- from here on written by scripts/report.py -->", "<!-- up to here -->"
KEPT = {
    "beacon": "summed up by beacons",
    "none": "all (no compression)",
    "drop": "one token per group, the others dropped",
    "mean": "group means",
    "no video": "no video at all",
}
OTHER_WAYS = tuple(KEPT)[1:]
OTHER_TASKS = ("ordering", "counting", "advertisement")
BUNDLE, NOTHING = "bundle", "-"
_SHARED = ("task", "frames", "ratio", "reduction", "seed", "samples", "files")  # equal in all parts of a test
_COUNTED = ("right", "total", "tries_right", "tries")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=ROOT / "docs" / "results")
    parser.add_argument("--document", type=Path, default=ROOT / "docs" / "benchmarks" / "small-model.md")
    parser.add_argument("--check", action="store_true")
    given = parser.parse_args(arguments)
    text = given.document.read_text()
    if START not in text or END not in text:
        print(f"error: {given.document} lacks the lines {START} and {END}", file=sys.stderr)
        return 2
    before, rest = text.split(START)
    after = rest.split(END, 1)[1]
    made = before + START + "\n\n" + "\n\n".join(sections(given.results, given.document.parent)) + "\n\n" + END + after
    if made == text:
        return 0
    if given.check:
        print(
            f"error: {given.document} is not what scripts/report.py makes of {given.results}; run it", file=sys.stderr
        )
        return 1
    given.document.write_text(made)
    return 0


def sections(results: Path, beside: Path) -> list[str]:
    """Markdown sections for all results that exist."""
    runs = {path.stem.removeprefix("tiny-"): load(path) for path in sorted(results.glob("tiny-*.json"))}
    runs = {name: join_parts(stored["cells"]) for name, stored in runs.items() if "cells" in stored}
    found = []
    validated = {path.stem.removeprefix("validation-"): path for path in sorted(results.glob("validation-*.json"))}
    if validated:
        found.append(chosen({name: load(path)["cells"] for name, path in validated.items()}))
    if runs:
        found += [needles(runs), *(by_family(name, cells) for name, cells in runs.items() if name == BUNDLE)]
        found += [kept(runs), others(runs)]
    folders = [path.parent for path in sorted(results.glob("niah-r*/*/summary.json"), key=_model_and_ratio)]
    if folders:
        found += [grids(folders), *(heat_map(folder, beside) for folder in folders)]
    vnbench = results / "tiny-vnbench.score.json"
    if vnbench.is_file():
        found.append(by_type(load(vnbench)))
    return found


def join_parts(cells: Sequence[dict]) -> list[dict]:
    """Merge cells that several processes scored in parts (`--part`); other cells are unchanged."""
    joined: dict[tuple, dict] = {}
    for cell in cells:
        number = cell.get("part", (0, 1))[1]
        of = tuple(map(cell.get, _SHARED))
        key = (*of, number) if number > 1 else (*of, number, len(joined))
        whole = joined.setdefault(key, {**cell, **dict.fromkeys(_COUNTED, 0), "by": {"family": {}}})
        whole.update({name: whole[name] + cell[name] for name in _COUNTED})
        for family, counts in cell["by"].get("family", {}).items():
            before = whole["by"]["family"].get(family, (0, 0))
            whole["by"]["family"][family] = [a + b for a, b in zip(before, counts)]
    return list(joined.values())


def chosen(runs: dict[str, list[dict]]) -> str:
    """Validation scores of the trained seeds, by which the bundle is chosen."""
    tasks = list(task_scores(next(iter(runs.values()))))
    rows = [
        [name, *(f"{task_scores(cells)[task]:.3f}" for task in tasks), f"{mean_score(cells):.4f}"]
        for name, cells in runs.items()
    ]
    text = f"The bundle is {best_run(runs)}: it has the best mean over the tasks of the validation world.\n\n"
    return text + table(["run", *tasks, "mean"], rows)


def needles(runs: dict[str, list[dict]]) -> str:
    """Needles by length, one column per run and ratio."""
    cells = {name: pick(cells, "needle", "beacon") for name, cells in runs.items()}
    lengths = sorted({cell["frames"] for each in cells.values() for cell in each})
    ratios = sorted({cell["ratio"] for each in cells.values() for cell in each})
    rows = [
        [f"{length:,}", *(share(find(cells[name], length, ratio)) for name in runs for ratio in ratios)]
        for length in lengths
    ]
    heads = ["frames", *(f"{name}, ratio {ratio}" for name in runs for ratio in ratios)]
    return "Needles of the test world, four choices, free generation:\n\n" + table(heads, rows)


def by_family(name: str, cells: Sequence[dict]) -> str:
    """Needles of one run at ratio 8 by the family of scenes around them."""
    columns = sorted((c for c in pick(cells, "needle", "beacon") if c["ratio"] == 8), key=lambda cell: cell["frames"])
    families = list(dict.fromkeys(family for cell in columns for family in cell["by"]["family"]))
    counts = [[cell["by"]["family"].get(family, (0, 0)) for cell in columns] for family in families]
    rows = [[family, *(f"{right}/{total}" for right, total in line)] for family, line in zip(families, counts)]
    heads = ["family", *(f"{cell['frames']:,} frames" for cell in columns)]
    return f"Needles of `{name}` at ratio 8 by the scenes around them:\n\n" + table(heads, rows)


def kept(runs: dict[str, list[dict]]) -> str:
    """Compression methods compared, at the lengths and ratios of the runs without beacons.

    If only methods without a ratio were run, beacons at ratio 8 are shown beside them.
    """
    other = [cell for cells in runs.values() for way in OTHER_WAYS for cell in pick(cells, "needle", way)]
    tried = sorted({(cell["frames"], cell["ratio"]) for cell in other})
    rows = []
    for length in sorted({length for length, _ in tried}):
        ratios = [ratio for frames, ratio in tried if frames == length and ratio] or [8]
        for reduction, words in KEPT.items():
            for ratio in [0] if reduction in WITHOUT_RATIO else ratios:
                line = [share(find(pick(cells, "needle", reduction), length, ratio)) for cells in runs.values()]
                if any(each != NOTHING for each in line):
                    rows.append([f"{length:,}", words, str(ratio or NOTHING), *line])
    return "Ways of keeping visual tokens:\n\n" + table(["frames", "kept", "ratio", *runs], rows)


def others(runs: dict[str, list[dict]]) -> str:
    """Ordering and counting as in VNBench, and the quick start's question."""
    rows = []
    for task in OTHER_TASKS:
        lengths = sorted({c["frames"] for cells in runs.values() for c in pick(cells, task, "beacon")})
        for length in lengths:
            line = []
            for cells in runs.values():
                cell = find(pick(cells, task, "beacon"), length, 8)
                tries = (
                    f"; {cell['tries_right']}/{cell['tries']} tries" if cell and cell["tries"] != cell["total"] else ""
                )
                line.append(share(cell) + tries)
            rows.append([task, f"{length:,}", *line])
    words = "Other questions, ratio 8. Ordering and counting: a video is right when all four tries are:"
    return words + "\n\n" + table(["task", "frames", *runs], rows)


def grids(folders: Sequence[Path]) -> str:
    """Needle in a haystack: means by length, a column a model and ratio."""
    summaries = [load(folder / "summary.json") for folder in folders]
    lengths = sorted({int(length) for summary in summaries for length in summary["by_length"]})
    by_length = [[summary["by_length"].get(str(length)) for summary in summaries] for length in lengths]
    rows = [[f"{length:,}", *(_score(score) for score in line)] for length, line in zip(lengths, by_length)]
    rows.append(["all", *(_score(summary["score"]) for summary in summaries)])
    heads = ["frames", *(f"{summary['model']}, ratio {summary['beacon_ratio']}" for summary in summaries)]
    return "Needle in a haystack by the published protocol, means over depths and needles:\n\n" + table(heads, rows)


def heat_map(folder: Path, beside: Path) -> str:
    """The picture of one model and ratio."""
    summary = load(folder / "summary.json")
    picture = Path(os.path.relpath(folder / "heatmap.png", beside)).as_posix()
    return f"![Needle accuracy by length and depth, {summary['model']}, ratio {summary['beacon_ratio']}]({picture})"


def by_type(scores: dict) -> str:
    """The synthetic VNBench."""
    rows = [
        [kind, str(each["videos"]), f"{each['accuracy']:.1%}", f"{each['tries_right']}/{each['tries']}"]
        for kind, each in scores["types"].items()
    ]
    rows.append(["overall", "", f"{scores['overall']:.1%}", ""])
    return "Synthetic VNBench, all four tries right:\n\n" + table(["type", "videos", "right", "tries"], rows)


def pick(cells: Sequence[dict], task: str, reduction: str) -> list[dict]:
    return [cell for cell in cells if cell["task"] == task and cell["reduction"] == reduction]


def find(cells: Sequence[dict], frames: int, ratio: int) -> dict | None:
    """The cell with the most samples."""
    fitting = [cell for cell in cells if cell["frames"] == frames and cell["ratio"] == ratio]
    return max(fitting, key=lambda cell: cell["total"], default=None)


def share(cell: dict | None) -> str:
    """Right answers with a 95 % interval (Wilson)."""
    if cell is None:
        return NOTHING
    low, high = interval(cell["right"], cell["total"])
    return f"{cell['right']}/{cell['total']} = {cell['right'] / cell['total']:.3f} ({low:.2f} to {high:.2f})"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def load(path: Path) -> dict:
    return json.loads(path.read_text())


def _score(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.3f}"


def _model_and_ratio(summary: Path) -> tuple[bool, str, int]:
    """The bundle comes first."""
    folder = summary.parent
    return folder.name != "videoxl-tiny", folder.name, int(folder.parent.name.removeprefix("niah-r"))


if __name__ == "__main__":
    sys.exit(main())
