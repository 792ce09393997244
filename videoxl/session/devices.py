"""Which device a model goes to."""

from __future__ import annotations

import torch

from videoxl.errors import ConfigError


def pick_device(asked: str) -> str:
    """A device as PyTorch names it; `auto` is the GPU with most free memory, or the CPU where there is none.

    Raises:
        ConfigError: a device that is not known or not here.
    """
    if asked == "auto":
        number = torch.cuda.device_count()
        if not number:
            return "cpu"
        return f"cuda:{max(range(number), key=lambda index: torch.cuda.mem_get_info(index)[0])}"
    try:
        device = torch.device(asked)
    except RuntimeError as error:
        raise ConfigError(f"device {asked!r} is not known; use auto, cpu or cuda:0") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device {asked!r} is not here; this machine has {torch.cuda.device_count()} GPU(s)")
    return asked
