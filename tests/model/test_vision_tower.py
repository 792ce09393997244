"""Vision towers, projectors and pooling."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModel

from videoxl.errors import ConfigError, MissingDependencyError
from videoxl.model.configuration import VideoXLConfig
from videoxl.model.modality import Picture, visual_length
from videoxl.model.pooling import pool_patches
from videoxl.model.projector import build_projector
from videoxl.model.towers import build_vision_tower
from videoxl.model.towers.clip import CLIPVisionTower

SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 2}
SMALL |= {"image_size": 56, "patch_size": 14}


@torch.no_grad()
@pytest.mark.parametrize("select", [-1, -2, -4, 0, 3])
def test_the_selected_hidden_state_equals_the_library_and_no_later_layer_runs(select):
    torch.manual_seed(0)
    tower = CLIPVisionTower(CLIPVisionConfig(**SMALL), select).eval()
    pixels = torch.randn(3, 3, 56, 56)
    clip: CLIPVisionModel = tower.vision_tower.vision_model
    expected = clip(pixels, output_hidden_states=True).hidden_states[select]
    ran = []
    for index, layer in enumerate(clip.encoder.layers):
        layer.register_forward_hook(lambda *_, index=index: ran.append(index))
    torch.testing.assert_close(tower(pixels), expected[:, 1:])
    assert ran == list(range(select if select >= 0 else 5 + select))
    torch.testing.assert_close(tower(pixels.double()), expected[:, 1:])


@pytest.mark.parametrize(("kind", "layers"), [("linear", 1), ("mlp1x_gelu", 1), ("mlp2x_gelu", 3), ("mlp3x_gelu", 5)])
def test_projectors(kind, layers):
    projector = build_projector(VideoXLConfig(mm_projector_type=kind, mm_hidden_size=8, hidden_size=12))
    assert projector(torch.randn(2, 5, 8)).shape == (2, 5, 12)
    assert layers == (len(projector) if hasattr(projector, "__len__") else 1)


def test_the_identity_projector_needs_equal_widths():
    assert isinstance(
        build_projector(VideoXLConfig(mm_projector_type="identity", mm_hidden_size=8, hidden_size=8)), torch.nn.Identity
    )
    with pytest.raises(ConfigError, match="mm_hidden_size is 8"):
        build_projector(VideoXLConfig(mm_projector_type="identity", mm_hidden_size=8, hidden_size=12))


def test_pooling_keeps_raster_order():
    grid = torch.arange(16.0).reshape(1, 16, 1)
    assert pool_patches(grid, 2, "average").flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    assert pool_patches(grid, 2, "max").flatten().tolist() == [5, 7, 13, 15]
    with pytest.raises(ConfigError, match="15 patches"):
        pool_patches(grid[:, :15], 2, "max")


def test_views_are_merged_and_counted_alike():
    views = torch.randn(5, 16, 3)
    config = VideoXLConfig()
    assert torch.equal(Picture().merge(views, config), pool_patches(views[1:], 2, "average").flatten(0, 1))
    assert torch.equal(Picture().merge(views[:1], config), views[0])
    for merge in ("unires", "flat"):
        config.mm_patch_merge_type = merge
        for number in (1, 2, 5):
            assert visual_length(number, 16, "image", config) == len(Picture().merge(views[:number], config))


@torch.no_grad()
def test_an_open_clip_tower_equals_open_clip():
    open_clip = pytest.importorskip("open_clip", reason="needs the extra open-clip (torchvision)")
    config = VideoXLConfig(mm_vision_tower="open_clip_hub:ViT-S-16", mm_hidden_size=384)
    tower = build_vision_tower(config).eval()
    assert (tower.hidden_size, tower.image_size, tower.num_patches) == (384, 224, 196)
    pixels = torch.randn(2, 3, 224, 224)
    kept = []
    blocks = tower.vision_tower.transformer.resblocks
    blocks[-2].register_forward_hook(lambda module, inputs, output: kept.append(output))
    tower.vision_tower(pixels)  # OpenCLIP's own forward
    found = tower(pixels)
    torch.testing.assert_close(found, kept[0][:, 1:], atol=1e-5, rtol=1e-4)
    assert open_clip and len(kept) == 2
    with pytest.raises(ConfigError, match="no model 'ViT-X'"):
        build_vision_tower(VideoXLConfig(mm_vision_tower="open_clip_hub:ViT-X"))


def test_without_open_clip_the_extra_is_named():
    if importlib.util.find_spec("open_clip"):
        pytest.skip("open_clip is installed")
    with pytest.raises(MissingDependencyError, match=r"videoxl\[open-clip\]"):
        build_vision_tower(VideoXLConfig(mm_vision_tower="open_clip_hub:ViT-S-16"))
