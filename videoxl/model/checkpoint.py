"""Strict `from_pretrained`: fills in beacon weights that a base model lacks; any other difference is an error."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from transformers.utils import logging

from videoxl.errors import CheckpointError

_BEACON_KEY = re.compile(r"\.beacon_(q|k|v|o|up|down)_proj\.(weight|bias)$")
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
        # Mismatched shapes are collected and reported below with the other keys.
        kwargs["ignore_mismatched_sizes"] = True
        with _quietly():  # what is missing is filled or reported below
            loaded: Any = super().from_pretrained(
                pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs
            )
        model, info = loaded
        missing = set(info["missing_keys"])
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
        embedding = "model.beacon_embed_tokens.weight"
        if embedding in missing:
            eos = self.config.eos_token_id
            eos = eos[0] if isinstance(eos, list) else eos
            if eos is None:
                raise CheckpointError("the checkpoint has no beacon embedding and its config no eos_token_id to copy")
            parameters[embedding].copy_(self.model.embed_tokens.weight[eos : eos + 1])
            filled.add(embedding)
        return filled


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
