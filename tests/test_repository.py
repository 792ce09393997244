"""What the repository ships: the README's quick start, scripts, configurations, assets, figures."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib

import pytest
import torch
from conftest import ROOT, SAMPLE, TINY

from videoxl import VideoXLConfig
from videoxl.cost.estimate import GIB, estimate
from videoxl.model.configuration import check_config
from videoxl.model.shape import model_shape

README = (ROOT / "README.md").read_text()
TENSORS = (ROOT / "docs" / "how-to" / "work-with-tensors.md").read_text()


def quick_start() -> str:
    """The published quick start, with the paths and the device of this machine."""
    block = next(b for b in re.findall(r"```python\n(.*?)```", TENSORS, re.S) if "load_pretrained_model" in b)
    for old, new in (
        ('"path/to/VideoXL_weight_8"', repr(str(TINY))),
        ('"path/to/video.mp4"', repr(str(SAMPLE))),
        ('"cuda:0"', '"cpu"'),
        ("max_frames_num = 900", "max_frames_num = 21"),
        ('"max_new_tokens": 1024', '"max_new_tokens": 8'),
    ):
        assert old in block
        block = block.replace(old, new)
    return block


@pytest.mark.parametrize("variant", ["sampled", "greedy", "beams"])
def test_the_published_quick_start_runs_as_printed(variant, capsys):
    block = quick_start()
    if variant != "sampled":
        block = block.replace('"do_sample": True, "temperature": 1', '"do_sample": False')
    if variant == "beams":
        block = block.replace('"num_beams": 1', '"num_beams": 2')
    scope: dict = {}
    exec(compile(block, "README.md", "exec"), scope)
    assert scope["output_ids"].shape == (1, 8) or scope["output_ids"].shape[1] <= 8
    assert capsys.readouterr().out.strip() == scope["outputs"].strip()


def test_the_video_memory_runs_after_the_quick_start(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    block = next(b for b in re.findall(r"```python\n(.*?)```", TENSORS, re.S) if "model.summarize" in b)
    block = block.replace('"film.mp4"', repr(str(SAMPLE))).replace("num_frames=2048", "num_frames=12")
    scope: dict = {}
    exec(compile(quick_start(), "README.md", "exec"), scope)
    capsys.readouterr()
    exec(compile(block, "README.md", "exec"), scope)
    assert scope["memory"].num_frames == 12 and (tmp_path / "film.videomemory.safetensors").is_file()
    assert "advertised" not in capsys.readouterr().out  # the answer alone, without the prompt


def test_the_readmes_session_runs_as_printed(monkeypatch, tmp_path, capsys):
    block = next(b for b in re.findall(r"```python\n(.*?)```", README, re.S) if "VideoXL.from_pretrained" in b)
    for old, new in (
        ('"path/to/VideoXL_weight_8"', f"{str(TINY)!r}, device='cpu'"),
        ('"film.mp4"', repr(str(SAMPLE))),
        ("frames=2048", "frames=4, max_new_tokens=4"),
        ("start=600, end=1200", "start=6, end=12"),
        ('"And who wins?"', '"And who wins?", max_new_tokens=4'),
    ):
        assert old in block
        block = block.replace(old, new)
    scope: dict = {}
    exec(compile(block, "README.md", "exec"), scope)
    assert len(scope["answer"].frames) == 4 and scope["film"].num_frames == 6
    assert str(scope["answer"].frames[-1].second) in capsys.readouterr().out


def test_links_and_files_that_documents_name_exist():
    for document in [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]:
        for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name}: {target}"


@pytest.mark.parametrize("name", ["qwen2-0.5b", "qwen2-1.5b", "qwen2-7b"])
def test_configurations_are_the_published_shapes(name):
    config = VideoXLConfig.from_pretrained(ROOT / "configs" / f"{name}.json")
    check_config(config)
    sizes = {"qwen2-0.5b": (896, 24, 14, 2), "qwen2-1.5b": (1536, 28, 12, 2), "qwen2-7b": (3584, 28, 28, 4)}
    shape = config.hidden_size, config.num_hidden_layers, config.num_attention_heads, config.num_key_value_heads
    assert shape == sizes[name]
    published = [[336 * a, 336 * b] for a in range(1, 50) for b in range(1, 50) if 2 <= a * b <= 49]
    assert config.image_grid_pinpoints == published and len(published) == 200
    assert config.rope_parameters["rope_theta"] == 1_000_000.0


def test_the_estimate_counts_what_the_design_states():
    config = VideoXLConfig.from_pretrained(ROOT / "configs" / "qwen2-7b.json")
    cost = estimate(model_shape(config), 2048, 8)
    assert cost.visual_tokens == 294_912
    assert cost.cached_positions - 64 == 36_864
    assert cost.cache / (cost.cached_positions + 2880) == 56 * 1024  # bytes a position at 7B in bf16
    assert cost.flop / 1e15 == pytest.approx(7.7, abs=0.1)
    assert cost.linear_flop / 1e15 == pytest.approx(4.33, abs=0.05)
    assert cost.attention_flop / 1e15 == pytest.approx(2.56, abs=0.05)


@pytest.mark.parametrize("record", sorted((ROOT / "docs" / "results").glob("benchmark-*.json")), ids=lambda p: p.stem)
def test_the_estimate_is_within_5_percent_of_every_recorded_peak(record):
    report = json.loads(record.read_text())
    config = VideoXLConfig.from_pretrained(ROOT / report["config"])
    for name in ("summarise", "memory"):
        part = report["parts"].get(name, {"rows": []})
        for row in part["rows"]:
            predicted = estimate(model_shape(config), row["frames"], row["ratio"], part["dtype"]).total / GIB
            assert predicted == pytest.approx(row["peak_gib"], rel=0.05)
    assert report["parts"].keys() & {"summarise", "memory"}


@pytest.mark.parametrize("name", ["make_tiny_random", "make_sample_video"])
def test_assets_are_made_by_their_scripts(tmp_path, name):
    target = tmp_path / ("model" if name == "make_tiny_random" else "sample.mp4")
    command = [sys.executable, f"scripts/{name}.py", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr
    if name == "make_tiny_random":
        from safetensors.torch import load_file

        made, shipped = (load_file(folder / "model.safetensors") for folder in (target, TINY))
        assert made.keys() == shipped.keys() and all(torch.equal(made[key], shipped[key]) for key in made)
        again = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
        assert again.returncode != 0 and "is not empty" in again.stderr
    else:
        assert target.stat().st_size == pytest.approx(SAMPLE.stat().st_size, rel=0.05)


def test_assets_keep_to_their_sizes():
    assert SAMPLE.stat().st_size <= 2 << 20
    assert sum(file.stat().st_size for file in TINY.iterdir()) <= 3 << 20


def test_pins_satisfy_the_declared_ranges():
    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = [
        *project["dependencies"],
        *(item for extra in project["optional-dependencies"].values() for item in extra),
    ]
    ranges = [Requirement(item) for item in declared]
    pins = {}
    for file in ("requirements.txt", "requirements-eval.txt"):
        for line in (ROOT / file).read_text().splitlines():
            if line and not line.startswith(("#", "-")):
                pin = Requirement(line)
                pins[file, pin.name.lower().replace("_", "-")] = next(iter(pin.specifier)).version
    for (file, name), version in pins.items():
        for wanted in ranges:
            if wanted.name.lower().replace("_", "-") == name:
                assert wanted.specifier.contains(version), f"{file}: {name} {version}"
