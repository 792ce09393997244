"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[Path | None, typer.Option("--model", help="Checkpoint folder (default: the bundled model).")]
Frames = Annotated[int | None, typer.Option(help="Frames to read, evenly spaced (default 128).")]
Fps = Annotated[float | None, typer.Option(help="Frames per second, instead of --frames.")]
MaxFrames = Annotated[int | None, typer.Option(help="Most frames to read with --fps.")]
Start = Annotated[float | None, typer.Option(help="Start of the part to read, in seconds.")]
End = Annotated[float | None, typer.Option(help="End of the part to read, in seconds.")]
Ratio = Annotated[
    int | None, typer.Option(help="Visual tokens that one cached position sums up (default: the model's, or 8).")
]
Compressor = Annotated[
    str | None,
    typer.Option(
        help="How visual tokens become cached positions: beacon (the model's own, default), drop, mean, none."
    ),
]
Backend = Annotated[str, typer.Option(help="Video decoder: pyav, decord or torchcodec.")]
Timeout = Annotated[float, typer.Option(help="Stop decoding after this many seconds without a frame.")]
Device = Annotated[
    str, typer.Option(help="auto (GPU with the most free memory, or the CPU), cpu, cuda:0, balanced (all GPUs), ...")
]
Dtype = Annotated[str, typer.Option(help="auto, bfloat16, float16 or float32.")]
Fp8 = Annotated[bool, typer.Option("--fp8", help="Run the decoder in FP8 (Ada and Hopper GPUs): less exact.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
