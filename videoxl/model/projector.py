"""From the vision tower's width to the decoder's (`mm_projector_type`)."""

from __future__ import annotations

import re

import torch
from torch import nn

from videoxl.errors import ConfigError
from videoxl.model.configuration import VideoXLConfig


def build_projector(config: VideoXLConfig) -> nn.Module:
    """`linear`, `identity`, or `mlpNx_gelu`: N linear layers with exact GELU between them. Raises `ConfigError`.

    Parameter names are the published ones: `mm_projector.0`, `mm_projector.2`, ... for the MLP.
    """
    kind = config.mm_projector_type
    if kind == "identity":
        if config.mm_hidden_size != config.hidden_size:
            raise ConfigError(
                f"mm_projector_type 'identity' needs equal widths; mm_hidden_size is {config.mm_hidden_size}, "
                f"hidden_size {config.hidden_size}"
            )
        return nn.Identity()
    if kind == "linear":
        return nn.Linear(config.mm_hidden_size, config.hidden_size)
    match = re.fullmatch(r"mlp([1-9]\d*)x_gelu", kind)
    if match is None:
        raise ConfigError(f"mm_projector_type is {kind!r}; the types that work are linear, identity and mlpNx_gelu")
    layers: list[nn.Module] = [nn.Linear(config.mm_hidden_size, config.hidden_size)]
    for _ in range(int(match.group(1)) - 1):
        layers += [nn.GELU(), nn.Linear(config.hidden_size, config.hidden_size)]
    return nn.Sequential(*layers)


def count_projector(config: VideoXLConfig) -> int:
    """Number of the projector's parameters, from its sizes only. Raises `ConfigError` as `build_projector`."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build_projector(config).parameters())
