"""How the time to read a video grows: the model t = a F + b F^2 / r, fitted to measured times, and its plot.

Every frame goes through the tower and the decoder's products once (a), and its tokens attend to what all frames before
it have left in the cache, one position for r tokens (b).

    python scripts/benchmark_scaling.py docs/results/benchmark.json scaling.png
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

DAY = 24 * 3600  # frames of a day at one a second


@dataclass(frozen=True)
class Scaling:
    """Seconds to read F frames at ratio r: `a * F + b * F**2 / r`."""

    a: float
    b: float

    def seconds(self, frames: float, ratio: float) -> float:
        return self.a * frames + self.b * frames**2 / ratio

    def crossing(self, ratio: float) -> float:
        """Number of frames above which the quadratic term dominates; infinity if that term is 0."""
        return self.a * ratio / self.b if self.b else float("inf")

    def describe(self, ratio: float) -> str:
        crossing = self.crossing(ratio)
        where = f"from {crossing:,.0f} frames on" if np.isfinite(crossing) else "nowhere that was measured"
        return (
            f"t = {self.a * 1e3:.3g} ms F + {self.b * 1e6:.3g} us F^2 / r; at ratio {ratio:g} the quadratic part is "
            f"the larger one {where}; a day at one frame a second takes {self.seconds(DAY, ratio) / 60:,.0f} minutes"
        )


def fit(measured: Sequence[tuple[int, int, float]]) -> Scaling:
    """Least squares of relative errors over (frames, ratio, seconds), both numbers at least 0."""
    frames, ratios, seconds = (np.array(column, dtype=float) for column in zip(*measured))
    terms = np.stack([frames, frames**2 / ratios], axis=1) / seconds[:, None]
    ones = np.ones(len(seconds))
    a, b = np.linalg.lstsq(terms, ones, rcond=None)[0]
    if b < 0:
        a, b = terms[:, 0] @ ones / (terms[:, 0] @ terms[:, 0]), 0.0
    elif a < 0:
        a, b = 0.0, terms[:, 1] @ ones / (terms[:, 1] @ terms[:, 1])
    return Scaling(float(a), float(b))


def draw(rows: Sequence[dict], picture: Path, about: str = "") -> Scaling:
    """Plot measured points and fitted lines on logarithmic axes; returns the fit."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    model = fit([(row["frames"], row["ratio"], row["read_s"]) for row in rows])
    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    longest = max(row["frames"] for row in rows)
    line = np.geomspace(min(row["frames"] for row in rows), 5 * longest, 100)
    for ratio in sorted({row["ratio"] for row in rows}):
        points = [(row["frames"], row["read_s"]) for row in rows if row["ratio"] == ratio]
        (drawn,) = axes.plot(line, [model.seconds(frames, ratio) for frames in line], label=f"ratio {ratio}")
        axes.plot(*zip(*points), "o", color=drawn.get_color())
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="frames",
        ylabel="seconds to read",
        title=f"Reading a video{about}: a = {model.a * 1e3:.3g} ms, b = {model.b * 1e6:.3g} us in a F + b F²/r",
    )
    axes.grid(which="both", alpha=0.3)
    axes.legend()
    figure.savefig(picture, dpi=120)
    pyplot.close(figure)
    return model


def main() -> int:
    if len(sys.argv) != 3:
        print(__doc__, file=sys.stderr)
        return 2
    parts = json.loads(Path(sys.argv[1]).read_text())["parts"]
    part = parts.get("scaling")
    if part is None:
        print(f"error: {sys.argv[1]} has no part scaling; run scripts/benchmark.py --part scaling", file=sys.stderr)
        return 2
    longer = parts.get("memory", {"rows": []})["rows"]  # the longest videos are read there
    model = draw([*part["rows"], *longer], Path(sys.argv[2]), f" on {part['device']}")
    for ratio in sorted({row["ratio"] for row in part["rows"]}):
        print(model.describe(ratio))
    return 0


if __name__ == "__main__":
    sys.exit(main())
