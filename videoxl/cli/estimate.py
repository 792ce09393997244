"""`videoxl estimate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from videoxl.cli.options import AsJson, Compressor
from videoxl.cli.output import print_facts, say
from videoxl.errors import CheckpointError, PromptError

if TYPE_CHECKING:
    from videoxl.model.configuration import VideoXLConfig


def estimate_command(
    frames: Annotated[int, typer.Option(help="Frames of the video.", min=1)],
    ratio: Annotated[int | None, typer.Option(help="Compression ratio (default: 8, or the compressor's own).")] = None,
    compressor: Compressor = None,
    model: Annotated[
        Path | None,
        typer.Option("--model", help="Checkpoint folder, or a file from configs/ (default: the bundled model)."),
    ] = None,
    dtype: Annotated[str, typer.Option(help="bfloat16, float16 or float32.")] = "bfloat16",
    as_json: AsJson = False,
) -> None:
    """Predict the GPU memory and cached positions of a run."""
    from videoxl.compression.base import get_compressor
    from videoxl.cost.estimate import BYTES, estimate
    from videoxl.model.shape import model_shape
    from videoxl.utils.resources import bundled_model

    if dtype not in BYTES:
        raise PromptError(f"dtype {dtype!r} is not known; use {', '.join(BYTES)}")
    folder = bundled_model() if model is None else model
    cost = estimate(model_shape(_read_config(folder)), frames, ratio, dtype, compressor)
    within = cost.highest_position < cost.trained_positions
    facts = {
        "model": str(folder),
        "frames": cost.frames,
        "ratio": cost.ratio,
        "compressor": get_compressor(compressor).name,
        "visual_tokens": cost.visual_tokens,
        "cached_positions": cost.cached_positions,
        "highest_position": cost.highest_position,
        "trained_positions": cost.trained_positions,
        "within_trained_positions": within,
        "weights_bytes": cost.weights,
        "cache_bytes": cost.cache,
        "work_bytes": cost.work,
        "allowance_bytes": cost.total - cost.weights - cost.cache - cost.work,
        "total_bytes": cost.total,
        "petaflop": round(cost.flop / 1e15, 3),
    }
    if as_json:
        print(json.dumps(facts))
        return
    print_facts(facts)
    if not within:
        say(
            f"note: positions reach {cost.highest_position}, the model was trained to {cost.trained_positions}; "
            "a larger ratio or fewer frames stay within its range"
        )


def _read_config(path: Path) -> VideoXLConfig:
    from videoxl.model.configuration import VideoXLConfig

    if not path.exists():
        raise CheckpointError(f"no such checkpoint or configuration: {path}")
    try:
        return VideoXLConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read the configuration {path}: {error}") from error
