"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[Path | None, typer.Option("--model", help="Checkpoint folder (default: the bundled model).")]
Frames = Annotated[int | None, typer.Option(help="Frames to read, evenly spaced (default 128).")]
Fps = Annotated[float | None, typer.Option(help="Frames per second, instead of --frames.")]
MaxFrames = Annotated[int | None, typer.Option(help="Never read more frames than this.")]
Start = Annotated[float | None, typer.Option(help="Start of the part to read, in seconds.")]
End = Annotated[float | None, typer.Option(help="End of the part to read, in seconds.")]
AllowPrivate = Annotated[
    bool, typer.Option("--allow-private", help="Fetch a URL also from this machine or a private network.")
]
Sampling = Annotated[
    str | None,
    typer.Option(help="uniform (default), or keyframes: the nearest keyframes, decoded much faster."),
]
StoredShape = Annotated[
    bool,
    typer.Option("--stored-shape", help="Keep non-square pixels as stored, as the published reader does."),
]
Ratio = Annotated[
    int | None,
    typer.Option(
        help="Compression: one cached position for this many visual tokens; 0 keeps all (default: the model's, or 8)."
    ),
]
Compressor = Annotated[
    str | None,
    typer.Option(
        help="How visual tokens become cached positions: beacon (learnt, default), drop (keeps one token of each "
        "group), mean (averages each group), none (keeps all; ratio 0), or one from an installed package."
    ),
]
Backend = Annotated[str, typer.Option(help="Video decoder: pyav, nvdec (the GPU), auto (both), decord or torchcodec.")]
Timeout = Annotated[float, typer.Option(help="Fail if the decoder gives no frame for this many seconds.")]
Device = Annotated[
    str, typer.Option(help="auto (GPU with the most free memory, or the CPU), cpu, cuda:0, balanced (all GPUs), ...")
]
Dtype = Annotated[
    str, typer.Option(help="auto (bfloat16 on a GPU that has it, else float32), bfloat16, float16 or float32.")
]
Fp8 = Annotated[
    bool,
    typer.Option(
        "--fp8", help="Compute the language model in 8 bits (Ada and Hopper GPUs): less memory, faster, less exact."
    ),
]
Verify = Annotated[
    bool, typer.Option("--verify", help="Compare the model's weights with the checksums beside them first.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
