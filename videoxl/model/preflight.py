"""Whether a checkpoint's folder can be what it says, from its configuration and file headers, before memory is taken.

Nothing is loaded, nothing outside the folder is named by its files, and no number decides how much memory is taken
unless the weights bear it out.
"""

from __future__ import annotations

import json
import os
import re
import stat
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from videoxl.errors import CheckpointError
from videoxl.utils.numbers import is_whole_number

_MOST_JSON = 1 << 26  # bytes
_MOST_HEADER = 100_000_000  # bytes; safetensors' own limit
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
_COUNTERS = ("position_ids",)  # whole numbers that old CLIP checkpoints hold beside their weights
# The largest values that are believed: some ten times those of the largest models.
_LIMITS = {
    "vocab_size": 1 << 24, "hidden_size": 1 << 17, "intermediate_size": 1 << 20, "num_hidden_layers": 1 << 12,
    "num_attention_heads": 1 << 12, "num_key_value_heads": 1 << 12, "head_dim": 1 << 12, "beacon_window": 1 << 20,
    "max_position_embeddings": 1 << 32, "mm_hidden_size": 1 << 17, "mm_spatial_pool_stride": 1 << 8,
    "image_size": 1 << 14, "patch_size": 1 << 12, "num_channels": 1 << 6,
}  # fmt: skip
_MOST_TOWER = 1 << 36  # parameters of a vision tower


def check_folder(folder: Path, config: dict[str, Any] | None = None) -> None:
    """Raise `CheckpointError` for a folder that cannot be a checkpoint, with the file, key, value and limit.

    Args:
        config: the configuration to use in place of the folder's.
    """
    config = read_config(folder) if config is None else check_numbers(folder, config)
    files = weight_files(folder)
    shapes: dict[str, list[int]] = {}
    for file in files:
        shapes |= _read_header(folder, file, is_quantised=bool(config.get("quantization_config")))
    if shapes:
        _compare(folder, config, shapes)


def read_config(folder: Path) -> dict[str, Any]:
    """`config.json`, with numbers that can be believed. Raises `CheckpointError`."""
    return check_numbers(folder, _read_json(folder, "config.json"))


def check_numbers(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    """A configuration whose numbers can be believed; the same one. Raises `CheckpointError`."""
    tower = config.get("mm_vision_config")
    for where, values in (("", config), ("mm_vision_config.", tower if isinstance(tower, dict) else {})):
        for key, limit in _LIMITS.items():
            value = values.get(key)
            if value is None or (key in ("image_size", "patch_size") and isinstance(value, list)):
                continue
            if not is_whole_number(value) or not 1 <= value <= limit:
                _refuse(folder, "config.json", f"{where}{key} is {str(value)[:40]}; it must be 1 to {limit:,}")
    if isinstance(tower, dict):
        kind = tower.get("model_type")
        if kind not in (None, "clip_vision_model", "clip"):
            _refuse(folder, "config.json", f"mm_vision_config is of a {str(kind)[:40]!r} tower; a CLIP one is needed")
        width, inner = tower.get("hidden_size") or 768, tower.get("intermediate_size") or 3072
        size = (tower.get("num_hidden_layers") or 12) * width * (4 * width + 2 * inner)
        if size > _MOST_TOWER:
            _refuse(folder, "config.json", f"mm_vision_config asks for {size:,} parameters; at most {_MOST_TOWER:,}")
    return config


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder, as transformers finds them: the single one, or those of the index."""
    names = _indexed(folder) if os.path.lexists(folder / INDEX) else []
    if os.path.lexists(folder / SINGLE):  # it counts, whatever an index that was left behind says
        names = [SINGLE]
    for name in names:
        _check_regular(folder, name)
    return [folder / name for name in names]


def _indexed(folder: Path) -> list[str]:
    """The files that the index names. Raises `CheckpointError` for one that is not of this folder."""
    index = _read_json(folder, INDEX).get("weight_map")
    if not isinstance(index, dict) or not all(isinstance(name, str) for name in index.values()):
        raise CheckpointError(f"cannot load {folder}: {INDEX}: weight_map is no object of file names")
    names = sorted(set(index.values()))
    for name in names:
        if not name or name in (".", "..") or name != os.path.basename(name) or "\\" in name:
            _refuse(folder, INDEX, f"weight_map names {name!r}, which is no file of this folder")
    return names


def _read_json(folder: Path, name: str) -> dict[str, Any]:
    size = _check_regular(folder, name)
    if size > _MOST_JSON:
        _refuse(folder, name, f"it has {size:,} bytes; at most {_MOST_JSON:,}")
    try:
        found = json.loads((folder / name).read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"cannot load {folder}: {name} is not valid JSON: {error}") from error
    if not isinstance(found, dict):
        _refuse(folder, name, f"it holds a {type(found).__name__}, not an object")
    return found


def _check_regular(folder: Path, name: str) -> int:
    """Bytes of a file of the folder. Raises `CheckpointError` for what would block, loop or is not there."""
    try:
        status = os.stat(folder / name)
    except (OSError, ValueError) as error:  # also a loop of links, a name that is too long, a zero byte
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"cannot load {folder}: {name}: {reason}") from error
    if not stat.S_ISREG(status.st_mode):
        _refuse(folder, name, "it is no regular file")
    return status.st_size


def _read_header(folder: Path, path: Path, is_quantised: bool) -> dict[str, list[int]]:
    """Shapes by name of one file of weights."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > min(_MOST_HEADER, max(path.stat().st_size - 8, 0)):
        _refuse(folder, path.name, f"it says that its header has {length:,} bytes: cut short, or no safetensors file")
    shapes = {}
    try:
        with safe_open(path, framework="pt") as weights:
            for name in weights.keys():
                view = weights.get_slice(name)
                if view.get_dtype() not in _FLOATS and not is_quantised and not name.endswith(_COUNTERS):
                    _refuse(folder, path.name, f"{name} holds {view.get_dtype()}, not floating-point numbers")
                shapes[name] = list(view.get_shape())
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(f"cannot load {folder}: {path.name} (cut short, or damaged): {error}") from error
    return shapes


def _compare(folder: Path, config: dict[str, Any], shapes: dict[str, list[int]]) -> None:
    """Numbers that decide how much memory is taken, beside what the weights say."""
    layers = {int(found[1]) for name in shapes if (found := re.match(r"model\.layers\.(\d{1,9})\.", name))}
    wanted: dict[str, int | None] = {"num_hidden_layers": len(layers) or None}
    for name, keys in (
        ("model.embed_tokens.weight", ("vocab_size", "hidden_size")),
        ("model.layers.0.mlp.gate_proj.weight", ("intermediate_size", None)),
    ):
        if len(shapes.get(name, ())) == 2:
            wanted |= {key: size for key, size in zip(keys, shapes[name]) if key is not None}
    if config.get("quantization_config"):
        wanted.pop("intermediate_size", None)  # packed
    for key, size in wanted.items():
        said = config.get(key)
        if said is not None and size is not None and said != size:
            _refuse(folder, "config.json", f"{key} is {said}, and the weights have {size}")


def _refuse(folder: Path, name: str, reason: str) -> None:
    raise CheckpointError(f"cannot load {folder}: {name}: {reason}")
