"""What `generate` is asked for, checked before anything is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from videoxl.errors import PromptError

# Ways of decoding that run the prompt through another model, another cache or code of the hub.
_FOR_TEXT_ALONE = (
    "assistant_model", "prompt_lookup_num_tokens", "assistant_early_exit", "penalty_alpha", "custom_generate",
    "cache_implementation", "past_key_values", "cache", "dola_layers",
)  # fmt: skip


def prompt_ids(given: Any, options: Mapping[str, Any]) -> Tensor:
    """A prompt with visual input as a tensor of ids, from a tensor, an array or nested lists. Raises `PromptError`."""
    if options.get("inputs_embeds") is not None:
        raise PromptError("inputs_embeds cannot hold visual input; give input_ids with one <image> for each")
    if given is None:
        raise PromptError("there is no prompt; give input_ids with one <image> for each visual input")
    try:
        ids = torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError) as error:
        raise PromptError(
            f"input_ids must be [batch, tokens] of whole numbers: {str(error).splitlines()[0]}"
        ) from error
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise PromptError(f"input_ids are {ids.dtype}; they must be whole numbers")
    return ids


def check_decoding(options: Mapping[str, Any], configs: Sequence[Any]) -> None:
    """Raise `PromptError` for a way of decoding that works for text alone."""
    for name in _FOR_TEXT_ALONE:
        values = [options.get(name), *(getattr(config, name, None) for config in configs)]
        if any(value is not None for value in values):
            raise PromptError(f"{name} works for text alone; leave it out where there is visual input")


def as_pixels(image: Any) -> Tensor:
    """Pixel values as a tensor. Raises `PromptError` for what is none."""
    try:
        return torch.as_tensor(image)
    except (TypeError, ValueError, RuntimeError) as error:
        raise PromptError(
            f"a visual input is a {type(image).__name__}, not pixel values [frames, 3, S, S]; use "
            "image_processor.preprocess or process_images"
        ) from error
