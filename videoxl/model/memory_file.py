"""The file of a video memory: one safetensors file, its state as JSON in the metadata.

Tensors: `layers.N.keys`, `layers.N.values` [heads, M, D]; `pending` [n, H]; `timestamps`, `indices` [F];
`beacon_spans` [b, 2]. The state holds prefix ids, ratios, plan position, source and the model's fingerprint.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from videoxl.errors import MemoryFileError
from videoxl.model.cache import SummaryCache
from videoxl.model.fingerprint import model_fingerprint
from videoxl.model.memory import VideoMemory
from videoxl.model.plan import RatioChooser
from videoxl.model.runner import RegionReader

FORMAT = "videoxl-memory"
VERSION = 1


def write_memory(memory: VideoMemory, path: Path, overwrite: bool) -> None:
    """Write to a temporary file beside `path`, then rename it."""
    if path.exists() and not overwrite:
        raise MemoryFileError(f"{path} exists; pass overwrite=True (on the command line --force) to replace it")
    if not path.parent.is_dir():
        raise MemoryFileError(f"cannot save a memory to {path}: the folder {path.parent} does not exist")
    tensors = {
        "timestamps": torch.tensor(memory.timestamps, dtype=torch.float64),
        "indices": torch.tensor(memory.indices, dtype=torch.int64),
        "beacon_spans": torch.from_numpy(np.ascontiguousarray(memory.beacon_spans())),
    }
    for index, layer in enumerate(memory.cache.layers):
        if layer.is_initialized:
            tensors[f"layers.{index}.keys"] = layer.keys[0].contiguous()
            tensors[f"layers.{index}.values"] = layer.values[0].contiguous()
    if memory.reader.pending is not None:
        tensors["pending"] = memory.reader.pending[0].contiguous()
    state = {
        "prefix_ids": memory.prefix_ids,
        "ratios": list(memory.reader.planner.chooser.ratios),
        "ratio_mix": memory.reader.planner.chooser.mix,
        "window_ratios": memory.cache.window_ratios,
        "window": memory.reader.planner.window,
        "source": memory.source,
        "fingerprint": memory.fingerprint,
        "num_layers": len(memory.cache.layers),
    }
    metadata = {"format": FORMAT, "version": str(VERSION), "state": json.dumps(state)}
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        save_file(tensors, temporary, metadata=metadata)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())  # safetensors writes files that only their owner may read
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        raise MemoryFileError(f"cannot save the memory to {path}: {error}; nothing was left there") from error
    finally:
        temporary.unlink(missing_ok=True)


def read_state(path: Path) -> dict:
    """The JSON state of a memory file, with the shapes of its tensors; needs no model."""
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


def read_memory(path: Path, model) -> VideoMemory:
    """Load a memory for `model`; each layer's part goes to that layer's device."""
    with _open(path, "cpu") as file:
        state = _state(path, file)
        own = model_fingerprint(model)
        if state["fingerprint"] != own:
            raise MemoryFileError(
                f"{path} was made by another model: the file says {_line(state['fingerprint'])}; this "
                f"model is {_line(own)}. "
                "Load the model that made it (same weights, dtype and quantisation), or summarise the video again"
            )
        cache = SummaryCache(state["num_layers"])
        for index, layer in enumerate(cache.layers):
            device = model.model.layers[index].self_attn.q_proj.weight.device
            if f"layers.{index}.keys" in file.keys():
                parts = (
                    file.get_tensor(f"layers.{index}.{part}").to(device).unsqueeze(0) for part in ("keys", "values")
                )
                layer.replace(*parts)
        limit = model.config.max_position_embeddings
        chooser = RatioChooser(state["ratios"], state["ratio_mix"], state["window"], limit)
        reader = RegionReader(model.model, cache, chooser)
        # A memory holds full windows only, so the plan is found again by planning as many.
        reader.steps = [reader.planner.next_window(state["window"]) for _ in state["window_ratios"]]
        cache.restore(len(state["prefix_ids"]) + reader.planner.position, state["window_ratios"])
        if "pending" in file.keys():
            reader.pending = file.get_tensor("pending").to(model.model.embed_tokens.weight.device).unsqueeze(0)
        memory = VideoMemory(model, cache, reader, state["prefix_ids"])
        memory.timestamps = file.get_tensor("timestamps").tolist()
        memory.indices = file.get_tensor("indices").tolist()
    memory.source = state["source"]
    memory._fingerprint = own
    return memory


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


def _umask() -> int:
    """The process's file mode mask, which can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
