"""Which device a model goes to."""

from __future__ import annotations

import torch

from videoxl.errors import ConfigError

_SPREAD = ("balanced", "balanced_low_0", "sequential")  # accelerate's ways to spread layers over GPUs


def pick_device(asked: str | torch.device | dict) -> str | dict:
    """Where a model goes; `auto` is the GPU with most free memory, or the CPU where there is none.

    Args:
        asked: a device as PyTorch names it; `balanced`, `balanced_low_0` or `sequential` to spread the layers over all
            GPUs; a dict from modules to devices.

    Raises:
        ConfigError: a device that is not known or not here.
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
