"""Strict `from_pretrained`: fills in beacon weights that a base model lacks; any other difference is an error."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers.utils import logging

from videoxl.errors import CheckpointError
from videoxl.model.preflight import check_folder, read_config

_BEACON_KEY = re.compile(r"\.beacon_(q|k|v|o|up|down)_proj\.(weight|bias)$")
_BEACON_EMBEDDING = "model.beacon_embed_tokens.weight"
_SHOWN = 8


if TYPE_CHECKING:
    from transformers import PreTrainedModel as _Model
else:
    _Model = object  # mixed into a model: see `modeling.py`


class CheckpointLoadingMixin(_Model):
    """Strict loading for `LlavaQwenForCausalLM`."""

    model: Any

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, may_lack: tuple[str, ...] = (), **kwargs):
        """As in transformers, and strict.

        Args:
            may_lack: prefixes of parameters that the checkpoint may lack, for training that starts from a language
                model with a new projector and tower; they keep their initialisation.

        Raises:
            CheckpointError: keys that are missing, unexpected or of another shape; the message lists them.
        """
        wants_info = kwargs.pop("output_loading_info", False)
        folder = Path(pretrained_model_name_or_path, kwargs.get("subfolder") or "")
        given: Any = kwargs.get("config")
        if folder.is_dir():
            check_folder(folder, None if given is None else given.to_dict())
        # Mismatched shapes are collected and reported below with the other keys.
        kwargs["ignore_mismatched_sizes"] = True
        with _quietly():  # what is missing is filled or reported below
            loaded: Any = super().from_pretrained(
                pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs
            )
        model, info = loaded
        missing = set(info["missing_keys"])
        if folder.is_dir():
            _check_beacons(folder, model, missing)
        copied = model.copy_missing_beacon_weights(missing)
        faults = {
            "missing": sorted(key for key in missing - copied if not key.startswith(may_lack or ("\0",))),
            "unexpected": sorted(key for key in info["unexpected_keys"] if "rotary_emb.inv_freq" not in key),
            "of another shape": sorted(
                f"{key} (checkpoint {list(found)}, model {list(wanted)})"
                for key, found, wanted in info["mismatched_keys"]
            ),
        }
        if any(faults.values()):
            listed = "; ".join(f"{len(keys)} {kind}: {_shorten(keys)}" for kind, keys in faults.items() if keys)
            raise CheckpointError(
                f"checkpoint {pretrained_model_name_or_path} does not fit its configuration: {listed}"
            )
        return (model, info) if wants_info else model

    @torch.no_grad()
    def copy_missing_beacon_weights(self, missing: set[str]) -> set[str]:
        """Initialise missing beacon weights as copies: projections of their twins, the embedding of `eos`.

        Returns:
            The names among `missing` that were filled.
        """
        parameters = dict(self.named_parameters())
        filled = set()
        for name in missing:
            if _BEACON_KEY.search(name) and name in parameters:
                parameters[name].copy_(_unpacked(parameters[name.replace("beacon_", "")]))
                filled.add(name)
        embedding = _BEACON_EMBEDDING
        if embedding in missing:
            eos = self.config.eos_token_id
            eos = eos[0] if isinstance(eos, list) else eos
            if eos is None:
                raise CheckpointError("the checkpoint has no beacon embedding and its config no eos_token_id to copy")
            parameters[embedding].copy_(self.model.embed_tokens.weight[eos : eos + 1])
            filled.add(embedding)
        return filled


def _check_beacons(folder: Path, model, missing: set[str]) -> None:
    """Beacon weights are filled with copies where the checkpoint has none at all: a few missing ones are damage.

    Kinds that the checkpoint's own configuration does not name (`beacon_param`) may be new.
    """
    has_own = (folder / "config.json").is_file()
    stored = (read_config(folder) if has_own else model.config.to_dict()).get("beacon_param") or ("q", "k", "v")
    beacons = {name: _beacon_kind(name) for name, _ in model.named_parameters() if _beacon_kind(name)}
    lacking = {name: kind for name, kind in beacons.items() if name in missing}
    known = {name for name, kind in beacons.items() if kind == "embedding" or kind in stored}
    if lacking.keys() & known and known - lacking.keys():
        names = sorted(lacking.keys() & known)
        raise CheckpointError(
            f"checkpoint {folder} lacks {len(names)} of its {len(known)} beacon weights, and must have all of them or "
            f"none (get the file again, or correct beacon_param in config.json): {_shorten(names)}"
        )


def _beacon_kind(name: str) -> str | None:
    """`q`, `k`, `v`, `o`, `mlp` or `embedding`; None for another weight."""
    if name == _BEACON_EMBEDDING:
        return "embedding"
    found = _BEACON_KEY.search(name)
    return None if found is None else found[1] if found[1] in "qkvo" else "mlp"


@contextmanager
def _quietly() -> Iterator[None]:
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)


def _unpacked(weight: torch.Tensor) -> torch.Tensor:
    """A weight as numbers, also where bitsandbytes has packed it into 4 or 8 bits."""
    if weight.is_floating_point():
        return weight
    from bitsandbytes.functional import dequantize_4bit

    if getattr(weight, "quant_state", None) is not None:
        return dequantize_4bit(weight.data, weight.quant_state)  # type: ignore[attr-defined]  # bitsandbytes adds it
    # 8 bits: whole numbers up to 127 in each row, and the row's largest absolute value.
    return weight.data.float() * weight.SCB.unsqueeze(1) / 127  # type: ignore[attr-defined]


def _shorten(keys: list[str]) -> str:
    more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return ", ".join(keys[:_SHOWN]) + more
