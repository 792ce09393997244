"""Merge a LoRA folder into its base: `python -m videoxl.train.merge ADAPTER --base BASE --output FOLDER`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from videoxl.errors import ArgumentError
from videoxl.model.loading import load_pretrained_model
from videoxl.utils.cli_errors import one_line_errors
from videoxl.utils.files import claim_output, whole_folder


def merge(adapter: Path, base: Path, output: Path, dtype: str = "bfloat16") -> None:
    """Merge a LoRA adapter into its base and write a checkpoint in the published layout.

    Raises:
        ArgumentError: `output` already exists. DataError: its folder cannot be written. CheckpointError: adapter or
            base cannot be loaded.
    """
    if output.exists():
        raise ArgumentError(f"{output} exists; name a folder that does not")
    claim_output(output.parent)
    tokenizer, model, image_processor, _ = load_pretrained_model(adapter, base, device_map="cpu", torch_dtype=dtype)
    with whole_folder(output) as draft:
        model.save_pretrained(draft)
        tokenizer.save_pretrained(draft)
        image_processor.save_pretrained(draft)


@one_line_errors
def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m videoxl.train.merge", description=merge.__doc__.splitlines()[0])
    parser.add_argument("adapter", type=Path, help="output folder of training with --lora_enable")
    parser.add_argument("--base", type=Path, required=True, help="model that the adapter was trained on")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--dtype", default="bfloat16", help="bfloat16, float16 or float32")
    given = parser.parse_args(arguments)
    merge(**vars(given))
    print(f"merged into {given.output}")


if __name__ == "__main__":
    sys.exit(main())
