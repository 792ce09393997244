"""A model spread over devices: each layer's cache lies where the layer does."""

from __future__ import annotations

import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from conftest import TINY, prompt_for, random_pixels

from videoxl.cache.summary import SummaryCache
from videoxl.compression.plan import Window
from videoxl.model.loading import load_pretrained_model


@torch.no_grad()
def test_caches_and_layouts_follow_their_layer(tiny):
    """The last layers lie on the meta device, which computes shapes and devices, so a wrong one would raise."""
    _, model, _ = tiny
    decoder = model.model
    for part in (decoder.layers[1], decoder.layers[2], decoder.norm):
        part.to("meta")
        add_hook_to_module(part, AlignDevicesHook(execution_device=torch.device("meta")), append=True)
    cache = SummaryCache(3)
    decoder.text_step(torch.randn(1, 5, 96), cache)
    decoder.windows_step(torch.randn(1, 1440, 96), cache, [Window(0, 1440, 8, 0)])
    decoder.text_step(torch.randn(1, 1, 96), cache)
    assert [layer.keys.device.type for layer in cache.layers] == ["cpu", "meta", "meta"]
    assert [layer.keys.shape[2] for layer in cache.layers] == [5 + 180 + 1] * 3


def test_a_device_map_with_offloaded_layers_gives_the_same_answer(tmp_path):
    tokenizer, model, _, _ = load_pretrained_model(TINY, device_map="cpu")
    _, ids = prompt_for(tokenizer)
    arguments = {"images": [random_pixels(12)], "modalities": ["video"], "max_new_tokens": 5, "do_sample": False}
    expected = model.generate(ids, **arguments).tolist()
    split = {"model.layers.1": "disk", "model.layers.2": "disk", "": "cpu"}
    names = ["embed_tokens", "beacon_embed_tokens", "layers.0", "norm", "rotary_emb", "vision_tower", "mm_projector"]
    split = {f"model.{name}": "cpu" for name in names} | {"lm_head": "cpu"} | {k: v for k, v in split.items() if k}
    _, spread, _, _ = load_pretrained_model(TINY, device_map=split, offload_folder=tmp_path)
    assert spread.model.layers[1].self_attn.q_proj.weight.device.type == "meta"  # its weights are on disk
    assert spread.generate(ids, **arguments).tolist() == expected
