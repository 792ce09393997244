"""The file of a video memory: one safetensors file, its state as JSON in the metadata.

Tensors: `layers.N.keys`, `layers.N.values` [heads, M, D]; `pending` [n, H]; `timestamps`, `indices` [F];
`beacon_spans` [b, 2]. The JSON holds prefix ids, the plan's ratios and window, source and the model's fingerprint.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from videoxl.errors import MemoryFileError
from videoxl.utils.files import whole_file

FORMAT = "videoxl-memory"
VERSION = 1
_IN_JSON = ("prefix_ids", "ratios", "ratio_mix", "window_ratios", "window", "source", "fingerprint")


@dataclass
class MemoryState:
    """The content of a memory's file, as plain values. F frames, M stored positions, b beacons, D head dimension.

    Attributes:
        ratios, ratio_mix, window: of the plan. window_ratios: of every window that was read.
        compressor: the method's name.
        timestamps: seconds [F], NaN where unknown. indices: numbers of frames [F], -1 where unknown.
        beacon_spans: seconds [b, 2] float64 of every stored visual position: first and last frame.
        layers: keys and values [heads, M, D] of each decoder layer; None for one that has stored nothing.
        pending: [n, H] visual tokens that do not fill a window yet; None if there are none.
    """

    prefix_ids: list[int]
    ratios: list[int]
    ratio_mix: str
    window_ratios: list[int]
    window: int
    compressor: str
    source: dict[str, str | float]
    fingerprint: dict[str, str]
    timestamps: list[float]
    indices: list[int]
    beacon_spans: np.ndarray
    layers: list[tuple[Tensor, Tensor] | None]
    pending: Tensor | None


def write_memory(memory: MemoryState, path: Path, overwrite: bool) -> None:
    """Write a file, whole or not at all. Raises `MemoryFileError` if it exists or cannot be written."""
    if path.exists() and not overwrite:
        raise MemoryFileError(f"{path} exists; pass overwrite=True (on the command line --force) to replace it")
    if not path.parent.is_dir():
        raise MemoryFileError(f"cannot save a memory to {path}: the folder {path.parent} does not exist")
    tensors = {
        "timestamps": torch.tensor(memory.timestamps, dtype=torch.float64),
        "indices": torch.tensor(memory.indices, dtype=torch.int64),
        "beacon_spans": torch.from_numpy(np.ascontiguousarray(memory.beacon_spans)),
    }
    for index, pair in enumerate(memory.layers):
        for part, tensor in zip(("keys", "values"), pair or ()):
            tensors[f"layers.{index}.{part}"] = tensor.contiguous()
    if memory.pending is not None:
        tensors["pending"] = memory.pending.contiguous()
    state = {name: getattr(memory, name) for name in _IN_JSON} | {"num_layers": len(memory.layers)}
    if memory.compressor != "beacon":  # keep the format of beacon files as it was
        state["compressor"] = memory.compressor
    metadata = {"format": FORMAT, "version": str(VERSION), "state": json.dumps(state)}
    try:
        with whole_file(path) as draft:
            save_file(tensors, draft, metadata=metadata)
    except (OSError, SafetensorError) as error:
        raise MemoryFileError(f"cannot save the memory to {path}: {error}; no partial file was left") from error


def read_state(path: Path) -> dict:
    """The JSON state of a memory file and its sizes; needs no model. Raises `MemoryFileError` as `read_memory`."""
    with _open(path, "cpu") as file:
        state = _state(path, file)
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}
        state["frames"] = shapes["timestamps"][0]
        state["pending_tokens"] = shapes.get("pending", [0])[0]
        state["cached_positions"] = shapes.get("layers.0.keys", [0, 0])[1]
        state["bytes"] = path.stat().st_size
        times = file.get_tensor("timestamps")
    state["first_second"], state["last_second"] = (float(times[0]), float(times[-1])) if len(times) else (None, None)
    return state


def read_memory(path: Path, own: dict[str, str], devices: Sequence[torch.device]) -> MemoryState:
    """Read a memory for a model.

    Args:
        own: the model's fingerprint. devices: where each layer's keys and values go.

    Raises:
        MemoryFileError: no readable memory file, another format version, or a memory of another model.
    """
    with _open(path, "cpu") as file:
        state = _state(path, file)
        if state["fingerprint"] != own:
            raise MemoryFileError(
                f"{path} was made by another model: the file says {_line(state['fingerprint'])}; this model is "
                f"{_line(own)}. "
                "Load the model that made it (same weights, dtype and quantisation), or summarise the video again"
            )
        names = set(file.keys())
        layers: list[tuple[Tensor, Tensor] | None] = []
        for index, device in zip(range(state["num_layers"]), devices):
            keys = [f"layers.{index}.{part}" for part in ("keys", "values")]
            layers.append(
                (file.get_tensor(keys[0]).to(device), file.get_tensor(keys[1]).to(device))
                if names.issuperset(keys)
                else None
            )
        return MemoryState(
            **{name: state[name] for name in _IN_JSON},
            compressor=state.get("compressor", "beacon"),
            timestamps=file.get_tensor("timestamps").tolist(),
            indices=file.get_tensor("indices").tolist(),
            beacon_spans=file.get_tensor("beacon_spans").numpy(),
            layers=layers,
            pending=file.get_tensor("pending") if "pending" in names else None,
        )


def is_memory_file(path: Path) -> bool:
    """Whether a file says that it is a video memory (a truncated one still does)."""
    if not path.is_file():  # a pipe would block
        return False
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            return FORMAT.encode() in file.read(min(length, 1 << 20))
    except OSError:
        return False


def _open(path: Path, device: str):
    if not path.is_file():
        raise MemoryFileError(f"no such memory file: {path}")
    try:
        return safe_open(path, framework="pt", device=device)
    except (OSError, SafetensorError) as error:
        raise MemoryFileError(f"{path} is not a readable memory file (cut short, or damaged): {error}") from error


def _state(path: Path, file) -> dict:
    metadata = file.metadata() or {}
    if metadata.get("format") != FORMAT:
        raise MemoryFileError(f"{path} is a safetensors file, but no video memory")
    if metadata.get("version") != str(VERSION):
        raise MemoryFileError(f"{path} has memory format {metadata.get('version')}; this version reads {VERSION}")
    return json.loads(metadata["state"])


def _line(fingerprint: dict[str, str]) -> str:
    return ", ".join(f"{key} {value}" for key, value in fingerprint.items())
