"""Triton kernels for a GPU, most for inference only; each replaces several of PyTorch's.

The same steps in plain PyTorch are at the call sites (`videoxl/model/`): they are the reference, and run on a CPU, in
float32, mostly with gradients, or without Triton. `TRITON_INTERPRET=1` runs the kernels on a CPU, for
tests.
"""

from __future__ import annotations

import warnings
from functools import lru_cache
from importlib.util import find_spec

import torch
from torch import Tensor

HAS_TRITON = find_spec("triton") is not None

KERNEL_HEAD_DIMS = (16, 32, 64, 128)
"""Head dimensions that the attention kernels support."""


def can_run(*tensors: Tensor, with_gradients: bool = False) -> bool:
    """Whether this package's kernels take the tensors: half precision, on the current GPU, Ampere or newer.

    Args:
        with_gradients: the kernel has a backward pass; else no gradient may flow.
    """
    return (
        HAS_TRITON
        and all(x.is_cuda and x.dtype in (torch.bfloat16, torch.float16) for x in tensors)
        and all(x.device.index == torch.cuda.current_device() for x in tensors)  # where Triton launches
        and all(_capability(x.device) >= (8, 0) for x in tensors)
        and (with_gradients or not (torch.is_grad_enabled() and any(x.requires_grad for x in tensors)))
        and all(_compiles(x.device) for x in tensors)
    )


@lru_cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def last_line(error: Exception) -> str:
    """The last line of a compiler's error message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]


@lru_cache
def _compiles(device: torch.device) -> bool:
    """Whether Triton can compile and run a kernel: it needs a C compiler and Python's headers, which may be missing."""
    from videoxl.kernels.activations import quick_gelu

    try:
        quick_gelu(torch.zeros(8, dtype=torch.bfloat16, device=device))
    except Exception as error:  # of the compiler, the linker, the driver: in any case the model runs without kernels
        warnings.warn(
            f"Triton's kernels do not run here ({last_line(error)}); PyTorch's operations take their place, which is "
            "slower. Usually a C compiler or Python's headers (python3-dev) are missing",
            stacklevel=2,
        )
        return False
    return True
