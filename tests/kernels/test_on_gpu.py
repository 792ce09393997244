"""The kernels as they are compiled, in the model: they run, and give what the plain operations give."""

from __future__ import annotations

import pytest
import torch
from conftest import prompt_for, random_pixels
from interpreted import on_gpu

pytest.importorskip("triton", reason="Triton is not installed here; the second environment has it")
from videoxl.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from videoxl.kernels import row_scales, windows
from videoxl.model import loss as training
from videoxl.model.decoder import decode_graph, decoder, fp8
from videoxl.model.decoder import layers as attention
from videoxl.model.decoder.fp8 import to_fp8

pytestmark = on_gpu


@pytest.fixture
def half(tiny):
    tokenizer, model, _ = tiny
    return tokenizer, model.to("cuda", torch.bfloat16)


def test_windows_are_within_the_noise_of_half_precision(tiny, monkeypatch):
    tokenizer, model, _ = tiny
    pixels, prefix = random_pixels(40), prompt_for(tokenizer)[0]
    wide = model.summarize(pixels, prefix_ids=prefix).cache.layers[-1].values
    model = model.to("cuda", torch.bfloat16)
    called, errors = [], []
    kernel = windows.window_attention
    monkeypatch.setattr(windows, "window_attention", lambda *given: called.append(1) or kernel(*given))
    for by_kernel in (True, False):
        if not by_kernel:
            assert called
            for module in (attention, decoder):
                monkeypatch.setattr(module, "can_run", lambda *_, **__: False)
        found = model.summarize(pixels, prefix_ids=prefix).cache.layers[-1].values
        errors.append((found.float().cpu() - wide).abs().mean())
    assert errors[0] < 1.2 * errors[1]


@pytest.mark.parametrize("rows", [1, 3])
def test_graphs_give_the_tokens_of_the_plain_step(half, rows):
    tokenizer, model = half
    memory = model.summarize(random_pixels(12), prefix_ids=prompt_for(tokenizer)[0])
    ids = prompt_for(tokenizer)[1].cuda().repeat(rows, 1)
    graphed = model.generate(ids, memory=memory, max_new_tokens=20, do_sample=False)
    assert decode_graph._steps[model][rows, rows > 1]._graph is not None
    model.train()  # switches the graphs off
    plain = model.generate(ids, memory=memory, max_new_tokens=20, do_sample=False)
    assert graphed.tolist() == plain.tolist()


def test_windows_with_one_way_back_give_the_gradients_of_windows_one_by_one(half, monkeypatch):
    tokenizer, model = half
    model.train()
    ids = prompt_for(tokenizer)[1].cuda()
    labels = ids.masked_fill(ids == IMAGE_TOKEN_INDEX, IGNORE_INDEX)
    pixels = [random_pixels(40).to("cuda", torch.bfloat16)]
    monkeypatch.setattr(training, "group_limit", lambda *_: 2)  # the second step sees the beacons of the first
    called, found = [], []
    together = attention.attend_windows
    monkeypatch.setattr(attention, "attend_windows", lambda *given: called.append(1) or together(*given))
    for one_by_one in (False, True):
        if one_by_one:
            monkeypatch.setattr(attention, "can_attend_together", lambda *_: False)
        model.zero_grad()
        loss = model(input_ids=ids, labels=labels, images=pixels, modalities=["video"], ratio_seed=[0]).loss
        loss.backward()
        found.append({name: p.grad.float() for name, p in model.named_parameters() if p.grad is not None})
    assert len(called) == 2 * model.config.num_hidden_layers  # 40 frames are four windows
    assert found[0].keys() == found[1].keys()
    whole = sum(gradient.square().sum() for gradient in found[1].values()).sqrt()
    for name, gradient in found[0].items():
        wanted = found[1][name]
        assert (gradient - wanted).norm() <= 0.05 * wanted.norm() + 1e-3 * whole, name


def test_rows_in_fp8_are_scaled_to_the_bit():
    x = torch.randn(4, 5000, device="cuda", dtype=torch.bfloat16)
    rows, scales = row_scales.scale_rows(x, fp8.FP8, fp8.LARGEST, fp8._LEAST)
    expected_scales = (x.abs().amax(1, keepdim=True).float() / fp8.LARGEST).clamp(min=fp8._LEAST)
    torch.testing.assert_close(scales, expected_scales)
    assert (rows.float() != (x.float() / scales).to(fp8.FP8).float()).float().mean() < 0.001


def test_a_model_in_fp8_answers(half):
    tokenizer, model = half
    before, ids = prompt_for(tokenizer)
    plain = model.summarize(random_pixels(12), prefix_ids=before).cache.layers[0].keys
    to_fp8(model)
    memory = model.summarize(random_pixels(12), prefix_ids=before)
    assert (memory.cache.layers[0].keys - plain).norm() / plain.norm() < 0.1
    assert model.generate(ids.cuda(), memory=memory, max_new_tokens=8, do_sample=False).shape[0] == 1
