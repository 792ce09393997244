"""The file of a video memory: one safetensors file, its state as JSON in the metadata.

Tensors: `layers.N.keys`, `layers.N.values` [heads, M, D]; `pending` [n, H]; `timestamps`, `indices` [F];
`beacon_spans` [b, 2]. The JSON holds prefix ids, the plan's ratios and window, source and the model's fingerprint.

Version 2 also holds dtype, shape and checksums of every tensor, a block of 16 MiB each, and a checksum of the JSON: a
flipped bit is found, in whatever part is read. Version 1 is read, too.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from videoxl.errors import MemoryFileError
from videoxl.utils.checksum import tensor_checksums, text_checksum
from videoxl.utils.files import whole_file
from videoxl.utils.numbers import is_whole_number

FORMAT = "videoxl-memory"
VERSION = 2
_READ = (1, 2)
_IN_JSON = ("prefix_ids", "ratios", "ratio_mix", "window_ratios", "window", "source", "fingerprint")
_IN_FINGERPRINT = ("config", "weights", "dtype", "quantization")
_FORMS = (
    ("timestamps", "F64", 1), ("indices", "I64", 1), ("beacon_spans", "F64", 2), ("pending", None, 2),
    ("layers.0.keys", None, 3),
)  # fmt: skip
_MOST_HEADER = 1 << 28  # bytes; that of an hour of video has about 200,000


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
    """Write a file, whole or not at all.

    Raises `MemoryFileError` if it exists or cannot be written, or if the memory holds NaN or infinity.
    """
    if path.exists() and not overwrite:
        raise MemoryFileError(f"{path} exists; pass overwrite=True (on the command line --force) to replace it")
    if not path.parent.is_dir():
        raise MemoryFileError(f"cannot save a memory to {path}: the folder {path.parent} does not exist")
    tensors = {
        "timestamps": torch.tensor(memory.timestamps, dtype=torch.float64),
        "indices": torch.tensor(memory.indices, dtype=torch.int64),
        "beacon_spans": torch.from_numpy(np.ascontiguousarray(memory.beacon_spans)),
    }
    values = {f"layers.{n}.{part}": tensor for n, pair in enumerate(memory.layers) for part, tensor in _named(pair)}
    if memory.pending is not None:
        values["pending"] = memory.pending
    for name, tensor in values.items():
        _check_finite(path, name, tensor)
        tensors[name] = tensor.detach().cpu().contiguous()
    state = {name: getattr(memory, name) for name in _IN_JSON} | {"num_layers": len(memory.layers)}
    if memory.compressor != "beacon":  # keep the format of beacon files as it was
        state["compressor"] = memory.compressor
    state["tensors"] = {name: _described(each) | {"blocks": tensor_checksums(each)} for name, each in tensors.items()}
    text = json.dumps(state)
    metadata = {"format": FORMAT, "version": str(VERSION), "state": text, "checksum": text_checksum(text)}
    try:
        with whole_file(path, sweep=True) as draft:
            save_file(tensors, draft, metadata=metadata)
    except (OSError, SafetensorError) as error:
        raise MemoryFileError(f"cannot save the memory to {path}: {error}; no partial file was left") from error


def _named(pair: tuple[Tensor, Tensor] | None) -> Sequence[tuple[str, Tensor]]:
    return () if pair is None else tuple(zip(("keys", "values"), pair))


def read_state(path: Path) -> dict:
    """The JSON state of a memory file and its sizes; needs no model. Raises `MemoryFileError` as `read_memory`."""
    file = _MemoryFile(path, verify=True)
    times = file.tensor("timestamps")
    return {
        **{name: value for name, value in file.state.items() if name != "tensors"},
        "format_version": file.version,
        "frames": len(times),
        "pending_tokens": file.shape("pending", [0])[0],
        "cached_positions": file.shape("layers.0.keys", [0, 0])[1],
        "bytes": path.stat().st_size,
        "first_second": float(times[0]) if len(times) else None,
        "last_second": float(times[-1]) if len(times) else None,
    }


def read_memory(
    path: Path, own: Callable[[int], dict[str, str]], devices: Sequence[torch.device], verify: bool = True
) -> MemoryState:
    """Read a memory for a model.

    Args:
        own: the model's fingerprint, for files of a version. devices: where each layer's keys and values go.
        verify: compare checksums (version 2); without, damage may go unseen.

    Raises:
        MemoryFileError: no readable memory file, another format version, damage, or a memory of another model.
    """
    file = _MemoryFile(path, verify)
    state = file.state
    mine = own(file.version)
    if state["fingerprint"] != mine:
        raise MemoryFileError(
            f"{path} was made by another model: the file says {_line(state['fingerprint'])}; this model is "
            f"{_line(mine)}. Load the model that made it (same weights, dtype and quantisation), or summarise the "
            "video again"
        )
    if state["num_layers"] != len(devices):
        raise MemoryFileError(f"{path} has {state['num_layers']} layers, and the model {len(devices)}")
    layers: list[tuple[Tensor, Tensor] | None] = []
    for index, device in enumerate(devices):
        names = [f"layers.{index}.{part}" for part in ("keys", "values")]
        there = [name in file.names for name in names]
        if any(there) and not all(there):
            raise MemoryFileError(f"{path} lacks {names[there.index(False)]}")
        pair = [file.finite(name, device) for name in names] if all(there) else None
        layers.append(None if pair is None else (pair[0], pair[1]))
    return MemoryState(
        **{name: state[name] for name in _IN_JSON},
        compressor=state.get("compressor", "beacon"),
        timestamps=file.tensor("timestamps").tolist(),
        indices=file.tensor("indices").tolist(),
        beacon_spans=file.tensor("beacon_spans").numpy(),
        layers=layers,
        pending=file.finite("pending", torch.device("cpu")) if "pending" in file.names else None,
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


class _MemoryFile:
    """An open memory file whose state was checked; its tensors are checked as they are read."""

    def __init__(self, path: Path, verify: bool):
        self._path, self._verify = path, verify
        self._file = _open(path)
        self.names = set(self._file.keys())
        self.version, self.state = _state(path, self._file.metadata() or {})
        self._described = self.state.get("tensors") if self.version > 1 else None
        if self._described is not None and self._described.keys() != self.names:
            self._refuse(f"its list of tensors differs in {sorted(self._described.keys() ^ self.names)[:4]}")
        for name in ("timestamps", "indices", "beacon_spans"):
            if name not in self.names:
                self._refuse(f"it lacks {name}")
        for name, kind, dimensions in _FORMS:
            form = self._file.get_slice(name) if name in self.names else None
            if form is not None and (len(form.get_shape()) != dimensions or (kind and form.get_dtype() != kind)):
                self._refuse(f"{name} is {form.get_dtype()} {form.get_shape()}")
        frames = self.shape("timestamps", [])
        if len(frames) != 1 or self.shape("indices", []) != frames:
            self._refuse("its times and frame numbers are not two equally long lists")

    def _refuse(self, reason: str) -> None:
        raise MemoryFileError(f"{self._path} is damaged: {reason}")

    def shape(self, name: str, absent: list[int]) -> list[int]:
        return list(self._file.get_slice(name).get_shape()) if name in self.names else absent

    def tensor(self, name: str) -> Tensor:
        try:
            found = self._file.get_tensor(name)
        except (OSError, SafetensorError, RuntimeError, ValueError) as error:
            raise MemoryFileError(f"{self._path} cannot be read: {name}: {error}") from error
        if self._described is not None and self._verify:
            said = self._described[name]
            if {key: said.get(key) for key in ("dtype", "shape")} != _described(found):
                self._refuse(f"{name} is {_described(found)}, not {said.get('dtype')} {said.get('shape')}")
            blocks, expected = tensor_checksums(found), said.get("blocks")
            if blocks != expected:
                pairs = zip(blocks, expected) if isinstance(expected, list) else ()
                wrong = next((number for number, pair in enumerate(pairs) if pair[0] != pair[1]), 0)
                self._refuse(f"the checksum of {name}, block {wrong}, differs; summarise the video again")
        return found

    def finite(self, name: str, device: torch.device) -> Tensor:
        """A tensor of floats on its device. Raises `MemoryFileError` for NaN and infinity."""
        found = self.tensor(name)
        if not found.is_floating_point():
            self._refuse(f"{name} holds {found.dtype}, not floats")
        found = found.to(device)
        _check_finite(self._path, name, found)
        return found


def _check_finite(path: Path, name: str, tensor: Tensor) -> None:
    if tensor.numel():
        least, most = tensor.detach().aminmax()  # NaN passes through; ten times as fast as isfinite
        if not (least.isfinite() and most.isfinite()):
            raise MemoryFileError(f"{path}: {name} holds NaN or infinity; summarise the video again")


def _described(tensor: Tensor) -> dict[str, Any]:
    return {"dtype": str(tensor.dtype).removeprefix("torch."), "shape": list(tensor.shape)}


def _open(path: Path):
    if not path.is_file():
        raise MemoryFileError(f"no such memory file: {path}")
    try:
        with open(path, "rb") as file:
            header = int.from_bytes(file.read(8), "little")
        if header > _MOST_HEADER:
            raise MemoryFileError(f"{path} is damaged: it says that its header has {header:,} bytes")
        return safe_open(path, framework="pt", device="cpu")
    except (OSError, SafetensorError, RuntimeError, ValueError) as error:
        raise MemoryFileError(f"{path} is not a readable memory file (cut short, or damaged): {error}") from error


def _state(path: Path, metadata: dict[str, str]) -> tuple[int, dict]:
    """Format version and state. Raises `MemoryFileError` unless all values have their types."""
    if metadata.get("format") != FORMAT:
        raise MemoryFileError(f"{path} is a safetensors file, but no video memory")
    version = metadata.get("version", "")
    if version not in map(str, _READ):
        raise MemoryFileError(f"{path} has memory format {version}; this version reads {' and '.join(map(str, _READ))}")
    text = metadata.get("state", "")
    if version != "1" and metadata.get("checksum") != text_checksum(text):
        raise MemoryFileError(f"{path} is damaged: the checksum of its state differs; summarise the video again")
    try:
        state = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise MemoryFileError(f"{path} is damaged: its state is no JSON: {error}") from error
    wrong = _wrong_key(state)
    if wrong is not None:
        held = state.get(wrong) if isinstance(state, dict) else state
        raise MemoryFileError(f"{path} is damaged: its state has {str(held)[:60]!r} as {wrong}")
    return int(version), state


def _wrong_key(state: Any) -> str | None:
    """The first key that is absent or has a value of another kind."""
    if not isinstance(state, dict):
        return "all of it"
    for name, is_right in _KINDS.items():
        if not is_right(state.get(name)):
            return name
    return None


def _are_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(is_whole_number(each) and 0 <= each < 1 << 62 for each in value)


def _is_fingerprint(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(name), str) for name in _IN_FINGERPRINT)


def _is_source(value: Any) -> bool:
    scalars = (str, int, float, bool, type(None))
    return isinstance(value, dict) and all(isinstance(each, scalars) for each in value.values())


def _are_tensors(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(each, dict) for each in value.values())


_KINDS: dict[str, Callable[[Any], bool]] = {
    "prefix_ids": _are_numbers,
    "ratios": lambda value: _are_numbers(value) and bool(value),
    "ratio_mix": lambda value: isinstance(value, str),
    "window_ratios": _are_numbers,
    "window": lambda value: is_whole_number(value) and value > 0,
    "source": _is_source,
    "fingerprint": _is_fingerprint,
    "num_layers": lambda value: is_whole_number(value) and 0 < value < 1 << 20,
    "compressor": lambda value: value is None or isinstance(value, str),
    "tensors": lambda value: value is None or _are_tensors(value),
}


def _line(fingerprint: dict[str, str]) -> str:
    return ", ".join(f"{key} {value}" for key, value in fingerprint.items())
