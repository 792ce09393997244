"""What differs between versions of the libraries, in one place.

transformers 5.24 calls a model's cache `cache`, in what it passes to layers and in what they return; before, it was
`past_key_values`. Callers of this package may pass either.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import transformers
from torch import nn
from transformers.modeling_outputs import CausalLMOutputWithPast

from videoxl.errors import PromptError

_NAMES = ("cache", "past_key_values")
CACHE = _NAMES[0] if any(field.name == _NAMES[0] for field in fields(CausalLMOutputWithPast)) else _NAMES[1]
"""The name under which this transformers passes and returns a cache."""


def one_cache(cache: Any, past_key_values: Any) -> Any:
    """The cache that a caller passed under either name; None where there is none. Raises `PromptError` for both."""
    if cache is not None and past_key_values is not None:
        raise PromptError("a cache was given twice, as `cache` and as `past_key_values`; leave one out")
    return past_key_values if cache is None else cache


def take_cache(kwargs: dict[str, Any]) -> Any:
    """As `one_cache`, but removes the cache from keyword arguments."""
    return one_cache(*(kwargs.pop(name, None) for name in _NAMES))


def enable_checkpointing(model: nn.Module) -> None:
    """Make layers recompute their activations in the backward pass (transformers 5.23 renamed the switch)."""
    newer = "activation_checkpointing_enable"
    getattr(model, newer if hasattr(model, newer) else "gradient_checkpointing_enable")({"use_reentrant": False})


def without_own_checkpointing() -> bool | None:
    """The value that switches off checkpointing in transformers' `TrainingArguments`; None if it has the newer name."""
    names = {field.name for field in fields(transformers.TrainingArguments)}
    return None if "activation_checkpointing" in names else False
