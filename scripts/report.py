"""Write the tables of the small model in docs/benchmarks.md from result files; nothing there is typed by hand.

    python scripts/report.py            rewrite the part between the markers
    python scripts/report.py --check    status 1 where the document differs from what the files say

`scripts/measure_tiny.sh` makes the files. Read are, where they are there: docs/results/tiny-*.json (scores of
`videoxl.synth.evaluate`, a file a seed), docs/results/niah-r*/ (result folders of `NIAH.run`, a ratio each) and
docs/results/tiny-vnbench.score.json.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from videoxl.synth.evaluate import interval

ROOT = Path(__file__).resolve().parent.parent
START, END = "<!-- from here on written by scripts/report.py -->", "<!-- up to here -->"
KEPT = {
    "beacon": "summed up by beacons",
    "none": "all (no compression)",
    "drop": "one in as many, the others dropped",
    "mean": "means of as many",
    "no video": "no video at all",
}
OTHER_TASKS = ("ordering", "counting", "advertisement")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=ROOT / "docs" / "results")
    parser.add_argument("--document", type=Path, default=ROOT / "docs" / "benchmarks.md")
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
    """Markdown of everything that is there."""
    runs = {path.stem.removeprefix("tiny-"): load(path) for path in sorted(results.glob("tiny-*.json"))}
    runs = {name: stored["cells"] for name, stored in runs.items() if "cells" in stored}
    found = []
    if runs:
        found += [needles(runs), kept(runs), others(runs)]
    found += [heat_map(path.parent, beside) for path in sorted(results.glob("niah-r*/*/summary.json"), key=_ratio_of)]
    vnbench = results / "tiny-vnbench.score.json"
    if vnbench.is_file():
        found.append(by_type(load(vnbench)))
    return found


def needles(runs: dict[str, list[dict]]) -> str:
    """Needles by length and ratio, a column a run and ratio."""
    cells = {name: pick(cells, "needle", "beacon") for name, cells in runs.items()}
    lengths = sorted({cell["frames"] for each in cells.values() for cell in each})
    ratios = sorted({cell["ratio"] for each in cells.values() for cell in each})
    rows = [
        [f"{length:,}", *(share(find(cells[name], length, ratio)) for name in runs for ratio in ratios)]
        for length in lengths
    ]
    heads = ["frames", *(f"{name}, ratio {ratio}" for name in runs for ratio in ratios)]
    return "Needles of the test world, four choices, free generation:\n\n" + table(heads, rows)


def kept(runs: dict[str, list[dict]]) -> str:
    """What is kept of the visual tokens, at the lengths that were tried with every way."""
    rows = []
    lengths = sorted({c["frames"] for cells in runs.values() for c in pick(cells, "needle", "drop")})
    for length in lengths:
        for reduction, words in KEPT.items():
            line = []
            for cells in runs.values():
                at = [c for c in pick(cells, "needle", reduction) if c["frames"] == length and c["ratio"] in (0, 8)]
                line.append(share(at[0] if at else None))
            rows.append([f"{length:,}", words, *line])
    return "Ways of keeping visual tokens, ratio 8 where there is one:\n\n" + table(["frames", "kept", *runs], rows)


def others(runs: dict[str, list[dict]]) -> str:
    """Ordering and counting as in VNBench, and the quick start's question."""
    rows = []
    for task in OTHER_TASKS:
        lengths = sorted({c["frames"] for cells in runs.values() for c in pick(cells, task, "beacon")})
        for length in lengths:
            line = []
            for cells in runs.values():
                cell = next((c for c in pick(cells, task, "beacon") if c["frames"] == length), None)
                tries = (
                    f"; {cell['tries_right']}/{cell['tries']} tries" if cell and cell["tries"] != cell["total"] else ""
                )
                line.append(share(cell) + tries)
            rows.append([task, f"{length:,}", *line])
    words = "Other questions, ratio 8. Ordering and counting: four tries a video, right when all four are:"
    return words + "\n\n" + table(["task", "frames", *runs], rows)


def heat_map(folder: Path, beside: Path) -> str:
    """One ratio of the needle in a haystack: its picture and its means."""
    summary = load(folder / "summary.json")
    picture = folder.joinpath("heatmap.png").relative_to(beside)
    rows = [[f"{int(length):,}", f"{score:.3f}"] for length, score in summary["by_length"].items()]
    return (
        f"Needle in a haystack by the published protocol, {summary['model']}, ratio {summary['beacon_ratio']}: "
        f"{summary['score']:.3f} over {summary['generations']} answers.\n\n"
        f"![Needle accuracy by length and depth at ratio {summary['beacon_ratio']}]({picture})\n\n"
        + table(["frames", "found"], rows)
    )


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
        return "-"
    low, high = interval(cell["right"], cell["total"])
    return f"{cell['right']}/{cell['total']} = {cell['right'] / cell['total']:.3f} ({low:.2f} to {high:.2f})"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def load(path: Path) -> dict:
    return json.loads(path.read_text())


def _ratio_of(summary: Path) -> int:
    return int(summary.parent.parent.name.removeprefix("niah-r"))


if __name__ == "__main__":
    sys.exit(main())
