"""Chooses the device of a model."""

from __future__ import annotations

import torch

from videoxl.errors import ConfigError

_SPREAD = ("balanced", "balanced_low_0", "sequential")  # accelerate's device maps, which spread layers over GPUs


def pick_device(asked: str | torch.device | dict) -> str | dict:
    """The device for a model; `auto` is the GPU with the most free memory, or the CPU if there is no GPU.

    Args:
        asked: a device as PyTorch names it; `balanced`, `balanced_low_0` or `sequential` to spread the layers over all
            GPUs; a dict from module names to devices.

    Returns:
        A device map for `load_pretrained_model`.

    Raises:
        ConfigError: a device that is unknown or that this machine does not have.
    """
    if isinstance(asked, dict):
        return asked
    asked = str(asked)
    if asked in _SPREAD:
        if torch.cuda.is_available():
            return asked
        raise ConfigError(f"device {asked!r} spreads a model over GPUs, and this machine has none; use auto or cpu")
    if asked == "auto":
        number = torch.cuda.device_count()
        if not number:
            return "cpu"
        return f"cuda:{max(range(number), key=lambda index: torch.cuda.mem_get_info(index)[0])}"
    try:
        device = torch.device(asked)
    except (RuntimeError, TypeError) as error:
        raise ConfigError(f"device {asked!r} is not known; use auto, cpu, cuda:0 or balanced") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device {asked!r} is not here; this machine has {torch.cuda.device_count()} GPU(s)")
    return asked
