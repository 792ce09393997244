"""Draw how a window leaves its beacons in the cache, from the plan itself.

python scripts/draw_window.py docs/assets/window.png
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("VIDEOXL_DECODER_PROCESS", "1")  # the plan needs neither torch nor transformers
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.patches import Rectangle

from videoxl.compression.beacon.layout import beacon_positions
from videoxl.compression.plan import RatioChooser, plan_span

PREFIX, WINDOW, RATIO, VISUAL, SUFFIX = 3, 8, 4, 16, 3
COLOURS = {"text": "#8d99ae", "visual": "#90caf9", "beacon": "#ef6c00"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("output", type=Path, help="picture to write")
    arguments = parser.parse_args()
    steps = list(plan_span(VISUAL, WINDOW, RatioChooser([RATIO], "step-random", WINDOW, 1000)))
    figure, axes = plt.subplots(figsize=(11, 4.4))
    rows = [("prefix", [], ["text"] * PREFIX)]
    cache = ["text"] * PREFIX
    for number, step in enumerate(steps, 1):
        sequence = ["visual"] * (step.num_tokens + step.num_groups)
        for place in beacon_positions(step):
            sequence[place] = "beacon"
        rows.append((f"window {number}", list(cache), sequence))
        cache += ["beacon"] * step.num_groups
    rows.append(("question", list(cache), ["text"] * SUFFIX))
    for row, (name, stored, new) in enumerate(rows):
        y = -1.5 * row
        axes.text(-0.5, y + 0.4, name, ha="right", va="center", fontsize=11)
        for place, kind in enumerate(stored + new):
            held = place < len(stored)
            edge = "black" if held else "none"
            axes.add_patch(Rectangle((place, y), 0.92, 0.8, facecolor=COLOURS[kind], edgecolor=edge, lw=1.4))
            axes.text(place + 0.46, y + 0.4, place, ha="center", va="center", fontsize=8)
    for x, (kind, label) in zip(
        (0, 5.2, 11.4), (("text", "text, kept"), ("visual", "visual token, dropped"), ("beacon", "beacon, kept"))
    ):
        axes.add_patch(Rectangle((x, 1.35), 0.7, 0.5, facecolor=COLOURS[kind]))
        axes.text(x + 0.9, 1.6, label, va="center", fontsize=10)
    axes.add_patch(Rectangle((15.4, 1.35), 0.7, 0.5, facecolor="white", edgecolor="black", lw=1.4))
    axes.text(16.3, 1.6, "in the cache", va="center", fontsize=10)
    axes.set_title(
        f"Two windows of {WINDOW} visual tokens at ratio {RATIO}: each reads the cache and itself, causally, and "
        "leaves\nits beacons. The number is the RoPE position: it counts what is stored, so beacons close up.",
        fontsize=11,
        loc="left",
    )
    axes.set_xlim(-3.2, 19.6)
    axes.set_ylim(-1.5 * len(rows) + 1.2, 2.1)
    axes.axis("off")
    figure.savefig(arguments.output, dpi=130, bbox_inches="tight")
    print(f"wrote {arguments.output}")


if __name__ == "__main__":
    main()
