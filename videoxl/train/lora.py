"""Low-rank adapters of the decoder (peft), saved and merged in the published layout."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor, nn

from videoxl.errors import ArgumentError, MissingDependencyError
from videoxl.model.modeling import LlavaQwenForCausalLM
from videoxl.train.config import TrainingArguments
from videoxl.train.trainable import part_of

OTHERS_FILE = "non_lora_trainables.bin"
"""Parameters trained in full besides the adapters: projector, tower, beacon embedding."""


def add_adapters(model: LlavaQwenForCausalLM, training: TrainingArguments, wanted: set[str]) -> nn.Module:
    """Add adapters to every linear layer of the decoder, including the beacons' projections.

    Projector and tower are trained in full if they are in `wanted`; so is the beacon embedding.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise MissingDependencyError("--lora_enable needs peft: pip install 'videoxl[train]'") from error
    if "mm_language_model" not in wanted:
        raise ArgumentError("--lora_enable adapts the decoder, which is frozen; leave it out, or train the decoder")
    names = sorted(
        {
            name.rpartition(".")[2]
            for name, module in model.model.layers.named_modules()
            if isinstance(module, nn.Linear)
        }
    )
    in_full = [name for name, p in model.named_parameters() if p.requires_grad and _trained_in_full(name)]
    adapted = get_peft_model(
        model,
        LoraConfig(
            r=training.lora_r,
            lora_alpha=training.lora_alpha,
            lora_dropout=training.lora_dropout,
            bias=training.lora_bias,
            # Full paths, since the tower's layers have the same short names.
            target_modules=rf"model\.layers\.\d+\.(self_attn|mlp)\.({'|'.join(map(re.escape, names))})",
            task_type="CAUSAL_LM",
        ),
    )
    for name, parameter in model.named_parameters():
        if name in in_full:
            parameter.requires_grad_(True)
            if not training.deepspeed:  # DeepSpeed keeps its own float32 copy of trainable weights
                parameter.data = parameter.data.float()
    return adapted


def _trained_in_full(name: str) -> bool:
    return part_of(name) in ("mm_mlp_adapter", "mm_vision_tower") or "beacon_embed_tokens" in name


def is_adapted(model: nn.Module) -> bool:
    return hasattr(model, "peft_config")


def base_of(model: nn.Module) -> LlavaQwenForCausalLM:
    """The Video-XL model inside a wrapper (peft's, or heads for classes), or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def other_weights(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The fully trained weights in a state dict of the wrapped model, under the plain model's names."""
    learning = {name for name, p in model.named_parameters() if p.requires_grad and "lora_" not in name}
    return {
        name.removeprefix("base_model.model."): value.detach().cpu().clone()
        for name, value in state.items()
        if name in learning
    }


def save_other_weights(state: dict[str, Tensor], model: nn.Module, folder: Path) -> None:
    torch.save(other_weights(state, model), folder / OTHERS_FILE)


def load_other_weights(model: nn.Module, folder: Path) -> None:
    """Load the weights that `save_other_weights` wrote, to resume a run."""
    stored = torch.load(folder / OTHERS_FILE, map_location="cpu", weights_only=True)
    base_of(model).load_state_dict(stored, strict=False)
