"""The seams: a compressor, a tower and a decoder from outside of the package, by registration alone."""

from __future__ import annotations

import sys
import types

import numpy as np
import pytest
import torch
from conftest import ROOT, SAMPLE
from videos import read_number, write_video

from videoxl import LlavaQwenForCausalLM, VideoXL, VideoXLConfig
from videoxl.compression import COMPRESSORS
from videoxl.compression.baselines import KeepAll
from videoxl.cost.estimate import estimate
from videoxl.errors import ConfigError, DataError, VideoError
from videoxl.media.choice import FrameChoice
from videoxl.media.decoders import DECODERS, VideoDecoder
from videoxl.media.pixels import VideoXLImageProcessor
from videoxl.media.stream import open_video
from videoxl.model.shape import model_shape
from videoxl.train.base_model import load_image_processor
from videoxl.train.data.sources import DATA_SOURCES, find_source
from videoxl.utils.registry import Registry

sys.path.insert(0, str(ROOT / "tests" / "plugins"))
import neighbours

FEW = {"frames": 11, "max_new_tokens": 4}


@pytest.fixture(scope="module")
def session(small_base) -> VideoXL:
    return VideoXL.from_pretrained(small_base, device="cpu")


def test_a_compressor_reads_a_video(session, tmp_path):
    answer = session.ask(SAMPLE, "What?", compressor="neighbours", **FEW)
    assert (answer.compressor, answer.ratios) == ("neighbours", (2,))
    prefix = session.read(SAMPLE, frames=1).cache.get_query_offset()
    assert answer.cached_positions == prefix + 11 * 16 // 2
    # At ratio 2 it is what the package's own means are.
    assert answer.text == session.ask(SAMPLE, "What?", compressor="mean", ratio=2, **FEW).text
    memory = session.read(SAMPLE, frames=11, compressor="neighbours")
    memory.save(tmp_path / "m.safetensors")
    assert session.ask(tmp_path / "m.safetensors", "What?", max_new_tokens=4).text == answer.text
    assert estimate(model_shape(session.model.config), 11, 2, compressor="neighbours").cached_positions == 88 + 64


def test_a_vision_tower_is_saved_loaded_and_asked(small_base, tmp_path, monkeypatch):
    config = VideoXLConfig.from_pretrained(small_base)
    config.mm_vision_tower, config.mm_vision_config, config.mm_hidden_size = "patches:56", None, 24
    config.beacon_window = config.beacon_stride = 40  # ten frames of 2 x 2 tokens
    torch.manual_seed(0)
    model = LlavaQwenForCausalLM(config)
    model.save_pretrained(tmp_path)
    tokenizer = VideoXL.from_pretrained(small_base, device="cpu").tokenizer
    tokenizer.save_pretrained(tmp_path)
    with monkeypatch.context() as patch:  # training and inference normalise as the tower says
        own = VideoXLImageProcessor(56, image_mean=(0.5, 0.5, 0.5))
        patch.setattr(neighbours.PatchTower, "image_processor", lambda self: own)
        assert load_image_processor(config, str(tmp_path), model.model.vision_tower) is own
    session = VideoXL.from_pretrained(tmp_path, device="cpu")
    assert isinstance(session.model.model.vision_tower, neighbours.PatchTower)
    assert session.image_processor.side == 56
    answer = session.ask(SAMPLE, "What?", **FEW)
    assert answer.visual_tokens == 11 * 4
    cost = estimate(model_shape(session.model.config), 11, 8)
    assert cost.visual_tokens == 44 and cost.weights == 2 * sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("timeout", [None, 60])
def test_a_decoder_decodes_here_and_in_the_decoder_process(session, tmp_path, timeout):
    path = write_video(tmp_path / "numbers.mp4", 20)
    processor = VideoXLImageProcessor(336)
    with open_video(path, processor, FrameChoice(5), backend="upside_down", timeout=timeout) as stream:
        frames = np.concatenate([chunk.frames for chunk in stream])
    assert [read_number(frame[::-1]) for frame in frames] == [0, 4, 9, 14, 19]
    answer = session.ask(SAMPLE, "What?", backend="upside_down", timeout=timeout, **FEW)
    assert answer.frames == session.ask(SAMPLE, "What?", **FEW).frames
    turned, upright = (session.read(SAMPLE, frames=11, backend=name) for name in ("upside_down", "pyav"))
    assert not torch.allclose(turned.cache.layers[-1].keys, upright.cache.layers[-1].keys)


def test_a_decoder_of_the_main_script_needs_to_decode_here(tmp_path, monkeypatch):
    main = types.new_class("Mine", (VideoDecoder,), {}, lambda body: body.update(name="mine", frames=lambda *_: ()))
    main.__module__ = "__main__"
    monkeypatch.setitem(DECODERS._known, "mine", main)
    path = write_video(tmp_path / "numbers.mp4", 5)
    with pytest.raises(VideoError, match="is defined in the main script"):
        open_video(path, VideoXLImageProcessor(56), FrameChoice(2), backend="mine", timeout=5)


def test_a_name_stands_for_one_implementation():
    names = Registry("thing", "videoxl.things", {"own": "videoxl.compression.baselines:KeepAll"})

    @names.register("mine")
    class Mine:
        pass

    assert names.get("mine") is Mine and names.get("own") is KeepAll and names.names() == ["own", "mine"]
    names.register("mine", Mine)
    for name in ("mine", "own"):
        with pytest.raises(ConfigError, match=f"thing '{name}' is registered already, by"):
            names.register(name, int)
    again = type("Mine", (), {"__module__": Mine.__module__, "__qualname__": Mine.__qualname__})
    names.register("one", KeepAll())
    for name, another in (("mine", again), ("one", KeepAll())):  # the same name, but another object
        with pytest.raises(ConfigError, match=f"thing '{name}' is registered already, by"):
            names.register(name, another)
    with pytest.raises(ConfigError, match="thing 'other' is not known; use own, mine"):
        names.get("other")


def test_an_installed_package_brings_its_own(monkeypatch):
    from importlib.metadata import EntryPoint

    point = EntryPoint("theirs", "neighbours:Neighbours", "videoxl.compressors")
    monkeypatch.setattr(
        "videoxl.utils.registry.entry_points", lambda group: [point] if group == "videoxl.compressors" else []
    )
    monkeypatch.setattr(COMPRESSORS, "_known", {})
    assert COMPRESSORS.get("theirs") is neighbours.Neighbours and "theirs" in COMPRESSORS.names()
    point = EntryPoint("gone", "no_such_package:Neighbours", "videoxl.compressors")
    with pytest.raises(ConfigError, match="compressor 'gone' cannot be imported from no_such_package:Neighbours"):
        COMPRESSORS.get("gone")


def test_without_installed_metadata_the_message_says_what_to_do(monkeypatch):
    monkeypatch.setattr("videoxl.utils.registry.entry_points", lambda group: [])
    monkeypatch.setattr(DATA_SOURCES, "_known", {})
    with pytest.raises(DataError, match="data source 'synth' is not known; no installed package brings one: install"):
        find_source("synth:gpu/video")


def test_a_memory_of_a_compressor_that_is_not_registered_is_not_saved(session, tmp_path):
    class Mine(neighbours.Neighbours):
        name = "mine_alone"

    memory = session.read(SAMPLE, frames=11, compressor=Mine())
    assert memory.info()["compressor"] == "mine_alone"
    with pytest.raises(ConfigError, match="compressor 'mine_alone' is not registered"):
        memory.save(tmp_path / "a.videomemory.safetensors")
    assert not list(tmp_path.iterdir())
