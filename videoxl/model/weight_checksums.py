"""Checksums of a checkpoint's weights in a file beside them, so that a flipped bit can be found and named."""

from __future__ import annotations

import warnings
from pathlib import Path

from safetensors import SafetensorError, safe_open

from videoxl.errors import CheckpointError, DataError
from videoxl.model.preflight import INDEX, SINGLE, weight_files
from videoxl.utils.checksum import tensor_checksums
from videoxl.utils.files import read_json, write_json

NAME = "checksums.json"


def write_checksums(folder: Path) -> None:
    """Write `checksums.json` for the safetensors files of a folder."""
    files = weight_files(folder)
    if files:
        write_json(folder / NAME, {"algorithm": "xxh3-128", "files": {file.name: _of_file(file) for file in files}})


def single_file_stamp(folder: Path) -> int | None:
    """When the folder's single file of weights was written; None where there is none."""
    try:
        return (folder / SINGLE).stat().st_mtime_ns
    except OSError:
        return None


def set_aside_stale(folder: Path, before: int | None) -> None:
    """Rename a single file of weights that shards have replaced: every loader would take it instead of them.

    Args:
        before: its stamp before the shards were written.
    """
    if before is not None and single_file_stamp(folder) == before and (folder / INDEX).is_file():
        aside = folder / f"{SINGLE}.before"
        (folder / SINGLE).replace(aside)
        warnings.warn(
            f"{folder / SINGLE} was there before; it is {aside.name} now, beside the new shards", stacklevel=3
        )


def verify_checksums(folder: Path) -> None:
    """Compare a folder's weights with its `checksums.json`.

    Raises:
        CheckpointError: there is none, or weights differ; the message names file, weight and block.
    """
    if not (folder / NAME).is_file():
        raise CheckpointError(f"{folder} has no {NAME} to verify its weights with; save_pretrained writes one")
    try:
        said = read_json(folder / NAME, "the checksums")["files"]
        expected = {name: dict(tensors) for name, tensors in said.items()}
    except (DataError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{folder / NAME} holds no checksums: {error!r}") from error
    files = {file.name: file for file in weight_files(folder)}
    if files.keys() != expected.keys():
        raise CheckpointError(
            f"{folder}: {NAME} and the weights differ in {sorted(files.keys() ^ expected.keys())[:4]}"
        )
    for name, file in files.items():
        found = _of_file(file)
        if found.keys() != expected[name].keys():
            wrong = sorted(found.keys() ^ expected[name].keys())
            raise CheckpointError(f"{folder}: {name} and {NAME} differ in {wrong[:4]}")
        for weight, described in found.items():
            if described != expected[name][weight]:
                raise CheckpointError(f"{folder}: {name}: {weight} is not what was saved; get the file again")


def _of_file(path: Path) -> dict[str, dict]:
    found = {}
    try:
        with safe_open(path, framework="pt") as weights:
            for name in sorted(weights.keys()):
                tensor = weights.get_tensor(name)
                dtype = str(tensor.dtype).removeprefix("torch.")
                found[name] = {"dtype": dtype, "shape": list(tensor.shape), "blocks": tensor_checksums(tensor)}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read (cut short, or damaged): {error}") from error
    return found
