"""Caches the lists of modules and parameters that a training loop reads at every step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def cached_module_lists(model: nn.Module) -> Iterator[None]:
    """Inside the context, `train`, `eval`, `zero_grad` and `parameters` of `model` use cached lists of its modules.

    transformers' loop calls them before and after every step. Traversing the modules each time takes milliseconds, in
    which a small model's GPU is idle (docs/log/2026-11.md). Modules and parameters that are added or removed in the
    meantime are missed. The methods of submodules do not change.
    """
    kind, modules, weights = type(model), list(model.modules()), list(model.parameters())

    def train(mode: bool = True) -> nn.Module:
        same = all(module.training is mode for module in modules)
        return model if same else kind.train(model, mode)

    def zero_grad(set_to_none: bool = True) -> None:
        if not set_to_none:
            return kind.zero_grad(model, set_to_none)
        for parameter in weights:
            parameter.grad = None

    def parameters(recurse: bool = True) -> Iterator[nn.Parameter]:
        return iter(weights) if recurse else kind.parameters(model, recurse)

    quick = {"train": train, "zero_grad": zero_grad, "parameters": parameters}
    before = {name: vars(model)[name] for name in quick if name in vars(model)}
    vars(model).update(quick)
    try:
        yield
    finally:
        for name in quick:
            del vars(model)[name]
        vars(model).update(before)
