"""Which modules of the model are trained, and with which learning rate."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from videoxl.compression.base import get_compressor
from videoxl.errors import ArgumentError
from videoxl.model.modeling import LlavaQwenForCausalLM
from videoxl.train.config import PARTS, ModelArguments


def part_of(name: str) -> str:
    """The entry of `PARTS` that the parameter of this name belongs to."""
    if "vision_tower." in name:
        return "mm_vision_tower"
    if "mm_projector." in name:
        return "mm_mlp_adapter"
    return "mm_beacon" if get_compressor().is_parameter(name) else "mm_language_model"


def learning_parts(arguments: ModelArguments) -> set[str]:
    """The entries of `PARTS` to train, from the flags by the published rules.

    Raises:
        ArgumentError: an unknown entry, or none at all.
    """
    if arguments.mm_tunable_parts is not None:
        wanted = {part.strip() for part in arguments.mm_tunable_parts.split(",") if part.strip()}
        unknown = wanted - set(PARTS)
        if unknown or not wanted:
            raise ArgumentError(f"--mm_tunable_parts {arguments.mm_tunable_parts!r}: the parts are {', '.join(PARTS)}")
        return wanted | ({"mm_beacon"} if "mm_language_model" in wanted else set())
    if arguments.tune_mm_mlp_adapter:
        return {"mm_mlp_adapter"}
    wanted = set() if arguments.freeze_backbone else {"mm_language_model", "mm_beacon"}
    if not arguments.freeze_mm_mlp_adapter:
        wanted.add("mm_mlp_adapter")
    if arguments.unfreeze_mm_vision_tower:
        wanted.add("mm_vision_tower")
    if not wanted:
        raise ArgumentError("nothing is left to train: every part is frozen")
    return wanted


def freeze_others(model: LlavaQwenForCausalLM, wanted: set[str]) -> None:
    """Make the modules in `wanted` trainable and freeze the rest, including parameters that no pass uses.

    These are the tower's layers after the selected one, and the beacons if nothing is compressed. A data-parallel
    wrapper would wait for their gradients.
    """
    idle = set(_idle_prefixes(model))
    for name, parameter in model.named_parameters():
        learns = part_of(name) in wanted and not any(name.startswith(prefix) for prefix in idle)
        parameter.requires_grad_(learns and parameter.is_floating_point())


def _idle_prefixes(model: LlavaQwenForCausalLM) -> list[str]:
    idle = []
    if not model.config.enable_beacon or model.config.active_ratios == [0]:
        idle += [name for name, _ in model.named_modules() if name.rpartition(".")[2].startswith("beacon_")]
    tower = model.model.vision_tower
    if tower is not None:
        idle += [f"model.vision_tower.{name}" for name in tower.idle_parameters()]
    return idle


def parameter_groups(
    model: nn.Module,
    decayed: set[str],
    weight_decay: float,
    rates: dict[str, float | None],
    wanted: Callable[[str, nn.Parameter], bool] = lambda name, parameter: True,
) -> list[dict]:
    """Parameter groups for an optimizer, one for each learning rate, with and without weight decay.

    Args:
        decayed: names of parameters with weight decay (no norms, no biases).
        rates: learning rate by entry of `PARTS`; None or absent: the optimizer's.
        wanted: which of the trainable parameters to take.
    """
    groups: dict[tuple, dict] = {}
    for name, parameter in model.named_parameters():
        if not (parameter.requires_grad and wanted(name, parameter)):
            continue
        rate = rates.get(part_of(name))
        decay = weight_decay if name in decayed else 0.0
        group = groups.setdefault((rate, decay), {"params": [], "weight_decay": decay})
        if rate is not None:
            group["lr"] = rate
        group["params"].append(parameter)
    return list(groups.values())
