"""Costs from shapes: they count what a model has, without building one."""

from __future__ import annotations

import pytest
import torch
from conftest import BUNDLE, ROOT, TINY

from videoxl import LlavaQwenForCausalLM, VideoXLConfig
from videoxl.cost.estimate import estimate
from videoxl.errors import ConfigError, PlanError
from videoxl.model.shape import model_shape

CONFIGS = [TINY, BUNDLE, *sorted((ROOT / "configs").glob("*.json"))]


@pytest.mark.parametrize("changes", [{}, {"beacon_param": ["q", "k", "v", "o", "mlp"]}, {"mm_projector_type": "linear"},
                                     {"tie_word_embeddings": True}], ids=str)  # fmt: skip
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_parameters_are_counted_as_a_model_has_them(path, changes):
    config = VideoXLConfig.from_pretrained(path)
    for name, value in changes.items():
        setattr(config, name, value)
    with torch.device("meta"):
        model = LlavaQwenForCausalLM(config)
    if config.tie_word_embeddings:
        model.tie_weights()
    shape = model_shape(config)
    tower = sum(parameter.numel() for parameter in model.model.vision_tower.parameters())
    whole = sum({id(parameter): parameter.numel() for parameter in model.parameters()}.values())
    assert (shape.tower.parameters, shape.decoder_parameters) == (tower, whole - tower)
    assert shape.tower.layers_run == model.model.vision_tower.num_layers_run
    assert shape.tower.patches == model.model.vision_tower.num_patches


def test_no_model_is_built(monkeypatch):
    monkeypatch.setattr(LlavaQwenForCausalLM, "__init__", lambda *_: pytest.fail("a model was built"))
    assert estimate(model_shape(VideoXLConfig.from_pretrained(TINY)), 100, 8).total > 0


@pytest.mark.parametrize("name", ["beacon", "drop", "mean", "none"])
def test_methods_cost_what_they_read_and_leave(name):
    config = VideoXLConfig.from_pretrained(TINY)
    config.mm_spatial_pool_stride = 8  # 9 tokens a frame
    config.beacon_window = config.beacon_stride = 800
    shape = model_shape(config)
    ratio = None if name == "none" else 8
    cost = estimate(shape, 8000 // shape.tokens_a_frame, ratio, compressor=name)
    assert cost.ratio == (ratio or 0)
    kept = cost.visual_tokens if name == "none" else cost.visual_tokens // 8
    assert cost.cached_positions == kept + 64
    rows = cost.visual_tokens + (kept if name == "beacon" else 0) if name in ("beacon", "none") else kept
    assert cost.linear_flop == 2.0 * shape.linear_parameters * rows


def test_what_cannot_be_counted_is_named():
    config = VideoXLConfig.from_pretrained(TINY)
    with pytest.raises(PlanError, match="larger than the window"):
        estimate(model_shape(config), 10, 5000)
    with pytest.raises(PlanError, match="works at ratio 0 alone, not at 4"):
        estimate(model_shape(config), 10, 4, compressor="none")
    config.mm_vision_tower = None
    config.mm_vision_config = None
    with pytest.raises(ConfigError, match="costs are known for CLIP towers"):
        estimate(model_shape(config), 10, 8)
