"""Figures of a run since its last log line: tokens per second, visual tokens, ratios, memory; and its loss curve."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from videoxl.model.modality import visual_length


class Meter:
    """Counts of one process; `report` sums them over all processes."""

    def __init__(self, ratios: Sequence[int]):
        self.ratios = list(ratios)
        self._windows: Counter[int] = Counter()
        self._text = 0
        self._visual = 0
        self._visual_total = 0
        self._since = time.perf_counter()

    def add(self, batch: dict[str, Any], outputs, model) -> None:
        """Count one batch."""
        inner = model.model
        alike = Counter((len(frames), kind) for frames, kind in zip(batch["images"], batch["modalities"]))
        for (frames, kind), number in alike.items():  # a batch can hold hundreds of pictures
            self._visual += number * visual_length(frames, inner.vision_tower.num_patches, kind, inner.config)
        if "attention_mask" in batch:
            self._text += int(batch["attention_mask"].sum())  # the mask is on the CPU: no wait for the GPU
        self._windows.update(getattr(outputs, "window_ratios", None) or ())

    def report(self, device: torch.device, world_size: int) -> dict[str, float]:
        """Figures since the last report (`visual_tokens`: in all); with several processes, a collective call."""
        seconds = time.perf_counter() - self._since
        counts = torch.tensor(
            [self._visual + self._text, self._visual, *(self._windows[ratio] for ratio in self.ratios)],
            dtype=torch.float64,
            device=device,
        )
        if world_size > 1:
            dist.all_reduce(counts)
        tokens, visual, *windows = counts.tolist()
        self._visual_total += int(visual)
        figures = {"tokens_per_second": tokens / seconds, "visual_tokens": self._visual_total}
        for ratio, number in zip(self.ratios, windows):
            if sum(windows):
                figures[f"ratio_{ratio}"] = number / sum(windows)
        if device.type == "cuda":
            figures["peak_memory_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
        self._text = self._visual = 0
        self._windows.clear()
        self._since = time.perf_counter()
        return {name: round(value, 4) if isinstance(value, float) else value for name, value in figures.items()}


def draw_loss(state_file: Path, picture: Path) -> None:
    """Draw the loss curve of a run from transformers' `trainer_state.json`."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    history = json.loads(state_file.read_text())["log_history"]
    figure, axes = pyplot.subplots(figsize=(8, 4.5), dpi=120)
    for key, label, style in (("loss", "training", "-"), ("eval_loss", "evaluation", "o-")):
        points = [(entry["step"], entry[key]) for entry in history if key in entry]
        if points:
            axes.plot(*zip(*points), style, label=label, linewidth=1.5, markersize=4)
    axes.set(xlabel="optimizer step", ylabel="cross entropy a token (nats)", title=f"Loss of {picture.parent.name}")
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend()
    figure.tight_layout()
    figure.savefig(picture)
    pyplot.close(figure)
