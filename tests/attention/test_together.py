"""Windows with one backward pass give the outputs and gradients of windows one by one.

In place of the GPU's operator, attention step by step.
"""

from __future__ import annotations

import pytest
import torch
from conftest import prompt_for, random_pixels

from videoxl.attention import windows as windows_attention
from videoxl.attention.windows import attend_windows
from videoxl.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from videoxl.model import loss as training
from videoxl.model.decoder import layers as attention


def plainly(query, key, value, scaling):
    """Lower-right causal attention [B, N, T, D], and the logarithm of its sum."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    allowed = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool).tril(key.shape[2] - query.shape[2])
    scores = (query @ key.transpose(2, 3) * scaling).masked_fill(~allowed, float("-inf"))
    return scores.softmax(-1) @ value, scores.logsumexp(-1)


@pytest.fixture
def flash(monkeypatch):
    """Counts calls of the backward pass."""
    calls = []

    def attend(query, key, value, scaling):
        return *plainly(query, key, value, scaling), (torch.zeros(()), torch.zeros(()))

    def backward(gradient, query, key, value, output, total, draws, scaling):
        calls.append(key.shape[2])
        with torch.enable_grad():
            inputs = [x.detach().requires_grad_() for x in (query, key, value)]
            found, again = plainly(*inputs, scaling)
        torch.testing.assert_close(found, output)  # what was kept belongs to these queries
        torch.testing.assert_close(again, total)
        return torch.autograd.grad(found, inputs, gradient)

    monkeypatch.setattr(windows_attention, "_attend", attend)
    monkeypatch.setattr(windows_attention, "_backward", backward)
    monkeypatch.setattr(windows_attention, "has_flash", lambda query: True)
    return calls


@pytest.mark.parametrize("stored", [0, 5])
def test_outputs_and_gradients_are_those_of_windows_one_by_one(flash, stored):
    torch.manual_seed(0)
    parts, beacons = ((9, 1), (12, 4), (7, 0)), 5
    query = torch.randn(2, 4, 28, 8, dtype=torch.float64, requires_grad=True)
    key, value = (torch.randn(2, 2, 28, 8, dtype=torch.float64, requires_grad=True) for _ in range(2))
    memory = [torch.randn(2, 2, stored + beacons, 8, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    inputs = (query, key, value, *memory)
    weight = torch.randn(2, 28, 4, 8, dtype=torch.float64)

    output = attend_windows(query, key, value, memory, parts, 0.3)
    gradients = torch.autograd.grad((output * weight).sum(), inputs)
    assert flash == [stored + 9, stored + 13, stored + 12]

    outputs, start, seen = [], 0, stored
    for length, number in parts:
        own = slice(start, start + length)
        keys, values = (torch.cat([m[:, :, :seen], x[:, :, own]], 2) for m, x in zip(memory, (key, value)))
        outputs.append(plainly(query[:, :, own], keys, values, 0.3)[0].transpose(1, 2))
        start, seen = start + length, seen + number
    expected = torch.cat(outputs, dim=1)
    torch.testing.assert_close(output, expected)
    for found, wanted in zip(gradients, torch.autograd.grad((expected * weight).sum(), inputs)):
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)  # sums over windows are in float32


@pytest.mark.parametrize(
    ("backend", "masks", "dropout", "has_flash", "together"),
    [
        ("sdpa", (None, None), 0.0, True, True),
        ("sdpa", (None, None), 0.0, False, False),
        ("eager", (None, None), 0.0, True, False),
        ("sdpa", (None, torch.ones(1, dtype=torch.bool)), 0.0, True, False),
        ("sdpa", (None, None), 0.1, True, False),
    ],
)
def test_what_the_operator_does_not_do_goes_one_by_one(monkeypatch, backend, masks, dropout, has_flash, together):
    monkeypatch.setattr(windows_attention, "has_flash", lambda _: has_flash)
    assert windows_attention.can_attend_together(backend, torch.zeros(1), masks, dropout) is together


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_training_step_is_the_same(tiny, flash, checkpointing, monkeypatch):
    tokenizer, model, _ = tiny
    model.train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    ids = prompt_for(tokenizer)[1]
    labels = ids.masked_fill(ids == IMAGE_TOKEN_INDEX, IGNORE_INDEX)
    given = {"input_ids": ids, "labels": labels, "images": [random_pixels(40)], "modalities": ["video"]}
    monkeypatch.setattr(training, "group_limit", lambda *_: 2)  # the second step sees the beacons of the first
    found = []
    for together in (True, False):
        if not together:
            monkeypatch.setattr(attention, "can_attend_together", lambda *_: False)
        model.zero_grad()
        loss = model(**given, ratio_seed=[0]).loss
        loss.backward()
        found.append((loss, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}))
    assert len(set(flash)) == 4  # windows, each of which sees more than the one before
    (loss, gradients), (plain_loss, plain_gradients) = found
    torch.testing.assert_close(loss, plain_loss)
    assert gradients.keys() == plain_gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, plain_gradients[name], rtol=1e-4, atol=1e-6)
