"""Which model made a video memory: its configuration and a digest of every weight.

The digest of a model's weights is kept in the user's cache, so that it is computed once (15 GB take seconds). It is
found there by sums of all weights, so a model that was changed in memory has another.
"""

from __future__ import annotations

import weakref
from pathlib import Path

import torch
from torch import Tensor

from videoxl.utils.checksum import tensor_checksums
from videoxl.utils.digest import digest, digest_json
from videoxl.utils.files import read_json, write_json
from videoxl.utils.user_cache import cache_folder, keep_newest, mark_used

SAMPLES = 8  # elements of each parameter; 860 parameters of a 7B model take some ten milliseconds on a GPU
MOST = 100
"""Digests that are kept in the user's cache."""

_WHOLE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
# Keys that do not change a cache's content: file locations, run settings, and what is recorded elsewhere.
_IGNORED = (
    "_name_or_path",
    "transformers_version",
    "architectures",
    "beacon_ratio",
    "beacon_ratio_mix",
    "mm_vision_tower",
    "dtype",
    "torch_dtype",
    "use_cache",
    "quantization_config",
    "_attn_implementation",
    "attn_implementation",
)


_known: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()  # model -> (key, digest)


def model_fingerprint(model) -> dict[str, str]:
    """`config` and `weights` (16 hex digits each), `dtype` and `quantization`; `weights` covers every weight."""
    sampled = sampled_fingerprint(model)
    return sampled | {"weights": _weights_digest(model, sampled)}


@torch.no_grad()
def sampled_fingerprint(model) -> dict[str, str]:
    """The same with `SAMPLES` numbers of each weight: what memory files of version 1 hold."""
    config = {key: value for key, value in model.config.to_dict().items() if key not in _IGNORED}
    quantization = getattr(model.config, "quantization_config", None)
    method = getattr(quantization, "quant_method", quantization)
    return {
        "config": digest_json(config),
        "weights": digest(_sampled_weights(model).numpy().tobytes()),
        "dtype": str(model.dtype).removeprefix("torch."),
        "quantization": getattr(model, "weights_format", None)
        or ("none" if quantization is None else str(getattr(method, "value", method))),
    }


def _weights_digest(model, sampled: dict[str, str]) -> str:
    # Sums of all weights change with any of them, however it was written to, and take a GPU some milliseconds.
    key = digest(sampled["weights"], sampled["dtype"], sampled["quantization"], *map(str, _sums(model)), digits=40)
    known = _known.get(model)
    if known is not None and known[0] == key:
        return known[1]
    folder = cache_folder("weights")
    entry = None if folder is None else folder / f"{key}.json"
    found = None if entry is None else _stored(entry)
    if found is None:
        found = _hash_weights(model)
        if entry is not None:
            _store(entry, found)
    _known[model] = key, found
    return found


@torch.no_grad()
def _sums(model) -> list[int]:
    """The sum of each weight's bits, taken as whole numbers."""
    sums = []
    for _, weight in sorted(model.named_parameters()):
        if weight.device.type != "meta" and weight.numel():
            flat = weight.detach().contiguous().reshape(-1)
            sums.append(flat.view(_WHOLE[flat.element_size()]).sum(dtype=torch.int64))
    devices = dict.fromkeys(each.device for each in sums)
    return [number for device in devices for number in torch.stack([s for s in sums if s.device == device]).tolist()]


def _stored(entry: Path) -> str | None:
    try:
        found = read_json(entry, "a digest of weights")["weights"]
        mark_used(entry)
        return found if isinstance(found, str) else None
    except Exception:  # absent, or damaged in whatever way: it is made again
        return None


def _store(entry: Path, found: str) -> None:
    try:
        write_json(entry, {"weights": found})
        keep_newest(entry.parent, "*.json", MOST)
    except OSError:  # a full disk: the next process computes it again
        pass


@torch.no_grad()
def _hash_weights(model) -> str:
    """Over all weights by name, as they are in memory (quantised ones with their constants)."""
    parts = []
    for name, value in sorted(model.state_dict().items()):
        if not isinstance(value, Tensor):
            parts.append(f"{name} {value!r}")
        elif value.device.type != "meta":
            parts.append(f"{name} {value.dtype} {list(value.shape)} {' '.join(tensor_checksums(value))}")
    return digest("\n".join(parts))


def _sampled_weights(model) -> torch.Tensor:
    rows = []
    for _, parameter in sorted(model.named_parameters()):
        if parameter.device.type == "meta" or parameter.numel() == 0:
            continue
        flat = parameter.detach().reshape(-1)
        sampled = torch.linspace(0, flat.numel() - 1, SAMPLES, dtype=torch.float64).long()
        rows.append(flat[sampled.to(flat.device)].float())
    by_device: dict[torch.device, list[int]] = {}
    for index, row in enumerate(rows):
        by_device.setdefault(row.device, []).append(index)
    for indices in by_device.values():  # one transfer a device, not one a parameter
        for index, row in zip(indices, torch.stack([rows[i] for i in indices]).cpu()):
            rows[index] = row
    return torch.stack(rows)
