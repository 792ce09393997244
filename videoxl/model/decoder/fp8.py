"""The decoder's matrix products in FP8, for inference: twice the throughput of bf16, half its bytes, less precision.

Weights and inputs are e4m3 numbers with a float32 scale for each output and each row, so that an outlier costs
precision only in its own row. Tower, projector, embeddings, head, norms and attention stay as they are.

Shape letters: M rows, K inputs, N outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from videoxl.errors import ConfigError
from videoxl.kernels import can_run

FP8 = torch.float8_e4m3fn
LARGEST = torch.finfo(FP8).max  # 448
_LEAST = 1e-12
_ALIGNED = 16  # sizes of inputs and outputs must be multiples of it


def scale_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [M, K] -> e4m3 [M, K] and float32 scales [M, 1], whose product approximates x."""
    if can_run(x):
        from videoxl.kernels import row_scales

        return row_scales.scale_rows(x, FP8, LARGEST, _LEAST)
    scales = (x.abs().amax(dim=1, keepdim=True).float() / LARGEST).clamp(min=_LEAST)
    return (x.float() / scales).to(FP8), scales


class Fp8Linear(nn.Module):
    """A linear layer with its weight in FP8. `weight` [N, K] e4m3, `scale` [1, N] float32, `bias` as before."""

    weight: Tensor
    scale: Tensor

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        with torch.no_grad():
            weight, scale = scale_rows(linear.weight.detach())
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale.t().contiguous())
        self.bias = linear.bias

    def _apply(self, fn, recurse: bool = True):
        """Moves with the model; `model.to(dtype)` and the like change only the bias."""
        self.bias = None if self.bias is None else nn.Parameter(fn(self.bias.data), requires_grad=False)
        self.weight = fn(self.weight.view(torch.uint8)).view(FP8)
        self.scale = fn(self.scale.view(torch.int32)).view(torch.float32)
        return self

    def forward(self, x: Tensor) -> Tensor:
        """x [..., K], 16 or 32 bits -> [..., N] in the same dtype."""
        rows, scales = scale_rows(x.flatten(0, -2))
        product = torch._scaled_mm(rows, self.weight.t(), scale_a=scales, scale_b=self.scale, out_dtype=torch.bfloat16)
        output = product.to(x.dtype).unflatten(0, x.shape[:-1])
        return output if self.bias is None else output + self.bias


def to_fp8(model) -> None:
    """Convert the linear layers of all decoder layers to FP8, in place; one at a time, so no second copy is needed.

    Raises:
        ConfigError: a GPU without FP8, weights that are quantised already, or sizes that FP8 products do not take.
    """
    device = model.model.input_device
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 9):
        name = torch.cuda.get_device_name(device)
        raise ConfigError(f"{name} has no FP8 arithmetic; it needs a GPU of compute capability 8.9 (Ada, Hopper)")
    if getattr(model, "hf_quantizer", None) is not None:
        raise ConfigError("the weights are quantised already; FP8 starts from 16 bits: leave out 4 and 8 bits")
    linears = [
        (parent, name, child)
        for layer in model.model.layers
        for parent in layer.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.Linear)
    ]
    for _, name, linear in linears:
        odd = [size for size in linear.weight.shape if size % _ALIGNED]
        if odd:
            raise ConfigError(f"{name} has a size of {odd[0]}; products in FP8 take multiples of {_ALIGNED}")
    for parent, name, linear in linears:
        setattr(parent, name, Fp8Linear(linear))
        del linear.weight
    model.weights_format = "fp8"
