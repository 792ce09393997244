"""A training loop's walks over modules, from lists made once."""

import pytest
import torch
from torch import nn

from videoxl.train.module_lists import cached_module_lists


def small_model():
    return nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.Dropout(0.5), nn.Linear(3, 1)))


def count_walks(monkeypatch):
    calls = []
    walk = nn.Module.named_modules
    monkeypatch.setattr(nn.Module, "named_modules", lambda self, *a, **k: calls.append(self) or walk(self, *a, **k))
    return calls


def test_a_step_walks_over_no_modules(monkeypatch):
    model = small_model()
    with cached_module_lists(model):
        calls = count_walks(monkeypatch)
        model.train()
        assert len(list(model.parameters())) == 4
        model.zero_grad()
    assert calls == []
    assert len(list(model.parameters())) == 4
    assert calls, "after it, parameters are looked for as ever"


def test_every_part_changes_its_mode_also_where_only_some_differ():
    model = small_model()
    with cached_module_lists(model):
        model.eval()
        assert not any(module.training for module in model.modules())
        model.train()
        assert all(module.training for module in model.modules())
        model[1][0].eval()
        assert model.train() is model
        assert model[1][0].training


def test_gradients_are_forgotten_or_made_zero():
    model = small_model()
    with cached_module_lists(model):
        model(torch.ones(1, 2)).sum().backward()
        model.zero_grad(set_to_none=False)
        assert all(torch.equal(each.grad, torch.zeros_like(each)) for each in model.parameters())
        model.zero_grad()
        assert all(each.grad is None for each in model.parameters())


def test_parameters_are_those_of_the_model_itself_or_of_all_of_it():
    model = small_model()
    model.scale = nn.Parameter(torch.ones(1))
    usual = list(model.parameters()), list(model.parameters(recurse=False))
    with cached_module_lists(model):
        for mine, theirs in zip((list(model.parameters()), list(model.parameters(recurse=False))), usual):
            assert len(mine) == len(theirs) and all(a is b for a, b in zip(mine, theirs))


def test_a_model_is_as_before_after_it_even_after_an_error():
    model = small_model()
    own = model.train
    model.train = own  # somebody else's
    with pytest.raises(RuntimeError), cached_module_lists(model):
        raise RuntimeError
    assert vars(model)["train"] is own and "zero_grad" not in vars(model) and "parameters" not in vars(model)
