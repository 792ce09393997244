"""Products in FP8: near those of the weights they come from, in all decoder layers and nowhere else."""

from __future__ import annotations

import pytest
import torch
from conftest import TINY, prompt_for, random_pixels
from torch import nn

from videoxl.cache.fingerprint import model_fingerprint
from videoxl.errors import ConfigError
from videoxl.model.decoder.fp8 import LARGEST, Fp8Linear, scale_rows, to_fp8
from videoxl.model.loading import load_pretrained_model
from videoxl.model.memory import VideoMemory


def test_rows_are_scaled_one_by_one():
    x = torch.randn(5, 64) * torch.tensor([1.0, 1e4, 1e-6, 3.0, 0.0]).unsqueeze(1)
    rows, scales = scale_rows(x)
    assert rows.dtype == torch.float8_e4m3fn and scales.shape == (5, 1)
    assert (rows.float().abs().amax(1)[:4] == LARGEST).all()
    back = rows.float() * scales
    # Three bits of mantissa: a sixteenth of each number, and half of the least step where it is small.
    assert ((back - x).abs() <= x.abs() / 16 + scales * 2**-10).all()


@pytest.mark.parametrize("shape", [(1, 3, 64), (2, 40, 64)])
def test_a_layer_is_near_the_one_it_comes_from(shape):
    torch.manual_seed(0)
    linear, x = nn.Linear(64, 48), torch.randn(shape)
    expected, found = linear(x), Fp8Linear(linear)(x)
    assert found.shape == expected.shape and found.dtype == x.dtype
    assert (found - expected).norm() / expected.norm() < 0.05


@torch.no_grad()
def test_a_model_in_fp8_reads_and_answers(tmp_path):
    tokenizer, model, _, _ = load_pretrained_model(TINY, device_map="cpu")
    before, ids = prompt_for(tokenizer)
    pixels = random_pixels(12)
    plain = model.summarize(pixels, prefix_ids=before)
    kept = model.model.embed_tokens.weight, model.lm_head.weight
    plain.save(tmp_path / "plain.safetensors")
    _, eight, _, _ = load_pretrained_model(TINY, device_map="cpu", load_fp8=True)
    kinds = {type(module) for layer in eight.model.layers for module in layer.modules() if hasattr(module, "weight")}
    assert Fp8Linear in kinds and nn.Linear not in kinds
    assert type(eight.lm_head) is nn.Linear and torch.equal(eight.lm_head.weight, kept[1])
    memory = eight.summarize(pixels, prefix_ids=before)
    keys = [each.cache.layers[0].keys for each in (plain, memory)]
    assert 0 < (keys[0] - keys[1]).norm() / keys[0].norm() < 0.1
    assert eight.generate(ids, memory=memory, max_new_tokens=4, do_sample=False).shape[0] == 1
    assert model_fingerprint(eight)["quantization"] == "fp8"
    with pytest.raises(Exception, match="another model"):  # what it holds is not what this model would have read
        VideoMemory.load(tmp_path / "plain.safetensors", eight)


def test_what_cannot_be_put_in_fp8_is_said(tiny):
    _, model, _ = tiny
    model.model.layers[0].mlp.up_proj = nn.Linear(96, 100, bias=False)
    with pytest.raises(ConfigError, match="up_proj has a size of 100"):
        to_fp8(model)
    assert type(model.model.layers[1].mlp.up_proj) is nn.Linear
    model.hf_quantizer = object()
    with pytest.raises(ConfigError, match="quantised already"):
        to_fp8(model)


def test_it_stays_in_fp8_whatever_the_model_is_moved_to(tiny, tmp_path):
    _, model, _ = tiny
    to_fp8(model)
    layer = model.model.layers[0].self_attn.q_proj
    before = layer.weight.view(torch.uint8).clone(), layer.scale.clone()
    model.to(torch.bfloat16)
    assert layer.weight.dtype == torch.float8_e4m3fn and layer.bias.dtype == torch.bfloat16
    assert torch.equal(layer.weight.view(torch.uint8), before[0]) and torch.equal(layer.scale, before[1])
    assert layer(torch.randn(2, 96, dtype=torch.bfloat16)).dtype == torch.bfloat16
    with pytest.raises(ConfigError, match="not saved"):
        model.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())
