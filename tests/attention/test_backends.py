"""Attention back ends against a slow plain reference, and each other."""

from __future__ import annotations

import pytest
import torch
from conftest import random_pixels
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.qwen2.modeling_qwen2 import (
    Qwen2RMSNorm,
    Qwen2RotaryEmbedding,
    apply_rotary_pos_emb,
    eager_attention_forward,
)
from transformers.utils import is_flash_attn_2_available

from videoxl.attention.backends import attend, build_mask
from videoxl.model.configuration import VideoXLConfig
from videoxl.model.decoder.layers import BeaconAttention, FusedRMSNorm, SignedRotaryEmbedding, rotate

CONFIG = VideoXLConfig(
    hidden_size=64, num_attention_heads=4, num_key_value_heads=2, intermediate_size=64, vocab_size=16
)


def reference(query, key, value, key_mask=None):
    """Query i of T sees the first K - T + i + 1 keys: softmax(q k / sqrt d) v one query at a time, in float64."""
    query, key, value = (x.double() for x in (query, key, value))
    groups, past = query.shape[1] // key.shape[1], key.shape[2] - query.shape[2]
    out = torch.zeros_like(query)
    for row in range(query.shape[0]):
        for head in range(query.shape[1]):
            k, v = key[row, head // groups], value[row, head // groups]
            for i in range(query.shape[2]):
                visible = torch.arange(past + i + 1)
                if key_mask is not None:
                    visible = visible[key_mask[row, visible].bool()]
                if len(visible):
                    scores = k[visible] @ query[row, head, i] / query.shape[3] ** 0.5
                    out[row, head, i] = scores.softmax(0) @ v[visible]
    return out.transpose(1, 2)


def run(backend, query, key, value, key_mask=None):
    layer = BeaconAttention(CONFIG, 0)
    layer.config = type("C", (), {"_attn_implementation": backend})
    mask = build_mask(backend, query.shape[2], key.shape[2], key_mask, query)
    return attend(layer.eval(), query, key, value, mask, 0.0)[0]


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (1, 37), (16, 16), (16, 53), (5, 6)])
def test_back_ends_equal_the_reference(backend, queries, keys):
    torch.manual_seed(0)
    query, key, value = torch.randn(2, 4, queries, 16), torch.randn(2, 2, keys, 16), torch.randn(2, 2, keys, 16)
    with torch.no_grad():
        torch.testing.assert_close(
            run(backend, query, key, value).double(), reference(query, key, value), atol=2e-6, rtol=1e-5
        )


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
def test_padding_is_not_seen(backend):
    torch.manual_seed(0)
    query, key, value = torch.randn(2, 4, 6, 16), torch.randn(2, 2, 20, 16), torch.randn(2, 2, 20, 16)
    key_mask = torch.ones(2, 20)
    key_mask[1, 14:17] = 0
    found = run(backend, query, key, value, key_mask)
    assert torch.isfinite(found).all()
    expected = reference(query, key, value, key_mask)
    torch.testing.assert_close(found[0].double(), expected[0], atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(found[1, 3:].double(), expected[1, 3:], atol=2e-6, rtol=1e-5)


def test_gradients_of_sdpa_equal_those_of_eager():
    torch.manual_seed(0)
    tensors = [torch.randn(1, heads, length, 16) for heads, length in ((4, 9), (2, 30), (2, 30))]
    gradients = []
    for backend in ("sdpa", "eager"):
        inputs = [x.clone().requires_grad_() for x in tensors]
        run(backend, *inputs).square().sum().backward()
        gradients.append([x.grad for x in inputs])
    for left, right in zip(*gradients):
        torch.testing.assert_close(left, right, atol=1e-5, rtol=1e-4)


def test_the_cpu_path_makes_no_mask_of_queries_times_keys():
    query, key = torch.randn(1, 1, 800, 16), torch.randn(1, 1, 60_000, 16)
    with torch.no_grad(), torch.profiler.profile(profile_memory=True) as profile:
        run("sdpa", query, key, key)
    largest = max((event.self_cpu_memory_usage for event in profile.key_averages()), default=0)
    assert largest < 800 * 60_000  # bytes: not even a boolean mask


@pytest.mark.skipif(not is_flash_attn_2_available(), reason="flash-attn is not installed (it needs a GPU)")
def test_flash_attention_2_equals_sdpa():
    torch.manual_seed(0)
    query, key, value = (
        torch.randn(1, heads, length, 64, device="cuda", dtype=torch.bfloat16)
        for heads, length in ((4, 100), (2, 400), (2, 400))
    )
    torch.testing.assert_close(
        run("flash_attention_2", query, key, value), run("sdpa", query, key, value), atol=2e-2, rtol=0
    )


def test_rotation_and_norm_equal_transformers():
    torch.manual_seed(0)
    x, other = torch.randn(2, 4, 9, 16), torch.randn(2, 2, 9, 16)
    positions = torch.randint(0, 30_000, (1, 9))
    expected = apply_rotary_pos_emb(x, other, *Qwen2RotaryEmbedding(CONFIG)(x, positions))[0]
    torch.testing.assert_close(rotate(x, *SignedRotaryEmbedding(CONFIG)(x, positions)), expected)
    hidden = torch.randn(3, 5, 64)
    torch.testing.assert_close(FusedRMSNorm(64)(hidden), Qwen2RMSNorm(64)(hidden))


def test_no_back_end_gets_positions_that_it_would_take_for_packed_sequences(tiny, monkeypatch):
    """transformers' flash attention reads `position_ids` so, and those of a window do not rise: beacons come last."""
    _, model, _ = tiny
    eager = ALL_ATTENTION_FUNCTIONS.get_interface("eager", eager_attention_forward)
    given = []

    def spy(*args, **kwargs):
        given.append(set(kwargs))
        return eager(*args, **kwargs)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "spy", spy)
    expected = model.summarize(random_pixels(23), prefix_ids=[1, 2], ratio=4).cache.layers[-1].keys
    model.config._attn_implementation = "spy"
    found = model.summarize(random_pixels(23), prefix_ids=[1, 2], ratio=4).cache.layers[-1].keys
    assert len(given) >= 3 and not any("position_ids" in names for names in given)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
