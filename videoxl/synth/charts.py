"""Pictures of a training run and of scores."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from videoxl.synth.evaluate import interval


def _pyplot():
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def draw_training(run: Path, stages: Sequence[str], picture: Path) -> None:
    """The loss of all stages, one after the other."""
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(figsize=(11, 4.5), dpi=120)
    start = 0
    for number, name in enumerate(stages):
        state = run / name / "trainer_state.json"
        if not state.is_file():
            continue
        stored = json.loads(state.read_text())
        points = [(start + entry["step"], entry["loss"]) for entry in stored["log_history"] if "loss" in entry]
        if points:
            label = f"{name.partition('-')[2]}, {stored['global_step']}"
            axes.plot(*zip(*points), ".-", markersize=2, linewidth=1.3, color=f"C{number}", label=label)
        axes.axvline(start, color="0.8", linewidth=0.8, zorder=0)
        start += stored["global_step"]
    axes.set(
        xlabel="optimizer step", ylabel="cross entropy (nats a class or token)", yscale="log", xlim=(0, start or 1)
    )
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(title="stage, steps", loc="upper left", bbox_to_anchor=(1, 1))  # the last stages are narrow
    axes.set_title(f"Training of the small model, {run.name}")
    figure.tight_layout()
    figure.savefig(picture)
    pyplot.close(figure)


def draw_accuracy(cells: Sequence[dict], picture: Path) -> None:
    """Needle accuracy by length, a line for each ratio and reduction, with 95 % intervals."""
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(figsize=(8, 4.5), dpi=120)
    needles = [cell for cell in cells if cell["task"] == "needle"]
    lines: dict[tuple[str, int], list[dict]] = {}
    for cell in needles:
        lines.setdefault((cell["reduction"], cell["ratio"]), []).append(cell)
    names = {"beacon": "ratio {}", "none": "no compression", "drop": "dropped, {}", "mean": "averaged, {}"}
    for (reduction, ratio), line in sorted(lines.items()):
        line.sort(key=lambda cell: cell["frames"])
        shares = [cell["right"] / cell["total"] for cell in line]
        spans = [interval(cell["right"], cell["total"]) for cell in line]
        errors = [[s - low for s, (low, _) in zip(shares, spans)], [high - s for s, (_, high) in zip(shares, spans)]]
        errors = [[max(0.0, value) for value in side] for side in errors]
        label = names.get(reduction, reduction).format(ratio)
        style = "o-" if reduction == "beacon" else "s--"
        axes.errorbar(
            [cell["frames"] for cell in line], shares, errors, fmt=style, label=label, capsize=3, linewidth=1.3
        )
    axes.axhline(0.25, color="0.6", linewidth=0.8, linestyle=":")
    lengths = sorted({cell["frames"] for cell in needles})
    axes.set_xscale("log", base=2)
    axes.set_xticks(lengths, [str(length) for length in lengths])
    axes.set(xlabel="frames", ylabel="right answers (four choices)", ylim=(0, 1.02), title="Needles in the test world")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(picture)
    pyplot.close(figure)
