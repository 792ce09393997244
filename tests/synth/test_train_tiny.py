"""`scripts/train_tiny.sh --cpu`: all stages by the training program, one after the other, resumable."""

import json

import pytest
import torch
from programs import call
from safetensors.torch import load_file
from tiny_runs import run_tiny

from videoxl.model.loading import load_pretrained_model
from videoxl.synth.stage_runs import forget_beacons
from videoxl.synth.stages import STAGES
from videoxl.synth.train_tiny import main

NAMES = [f"{number + 1}-{stage.name}" for number, stage in enumerate(STAGES["cpu"])]


def losses(folder):
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


@pytest.mark.slow
def test_every_stage_ran_all_its_steps_and_the_long_ones_learnt(tiny_run):
    folder, _ = tiny_run
    for name, stage in zip(NAMES, STAGES["cpu"]):
        assert json.loads((folder / name / "trainer_state.json").read_text())["global_step"] == stage.steps
        if stage.steps >= 40:
            assert losses(folder / name)[-1] < losses(folder / name)[0] * 0.9, name


@pytest.mark.slow
def test_it_leaves_a_model_with_its_card_scores_and_pictures(tiny_run):
    folder, done = tiny_run
    assert "model card" in done.stdout
    model = load_pretrained_model(folder / "model", device_map="cpu")[1]
    assert model.config.beacon_ratio == [8] and "synthetic world" in model.config.model_note
    card = (folder / "model" / "README.md").read_text()
    assert "apache-2.0" in card and "--seed 0" in card and "| needle |" in card
    for picture in ("loss.png", "accuracy.png"):
        assert (folder / picture).read_bytes()[:4] == b"\x89PNG"
    cells = json.loads((folder / "scores.json").read_text())["cells"]
    assert {cell["reduction"] for cell in cells} == {"beacon", "no video"}
    assert all(cell["total"] == 14 for cell in cells)


@pytest.mark.slow
def test_a_stage_moves_what_it_says_and_nothing_else(tiny_run):
    folder, _ = tiny_run
    states = {name: load_file(folder / name / "model.safetensors") for name in NAMES}
    for (before, after), stage in zip(zip(NAMES, NAMES[1:]), STAGES["cpu"][1:]):
        moved = {
            name for name, weight in states[after].items() if name in states[before] and
            not torch.equal(weight, states[before][name])
        }  # fmt: skip
        tower = any("vision_tower" in name for name in moved)
        decoder = any("model.layers" in name for name in moved)
        assert tower == (
            stage.kind == "words of pictures" or ("mm_vision_tower" in stage.parts and stage.kind == "video")
        )
        assert decoder == (stage.kind != "words of pictures")


@pytest.mark.slow
def test_an_unfinished_run_goes_on_with_the_first_unfinished_stage(tiny_run):
    folder, _ = tiny_run
    kept = folder / NAMES[0] / "model.safetensors"
    before = kept.stat().st_mtime_ns
    last = folder / NAMES[-1]
    weights = load_file(last / "model.safetensors")
    for path in last.iterdir():
        path.unlink()
    done = run_tiny(folder, "--cpu")
    assert done.returncode == 0, done.stderr[-3000:]
    assert kept.stat().st_mtime_ns == before
    again = load_file(last / "model.safetensors")
    assert all(torch.equal(again[name], weights[name]) for name in weights)


@pytest.mark.parametrize("name", ["mine.txt", "run.json"])
def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path, name):
    held = json.dumps({"size": "cpu", "seed": 1})
    (tmp_path / name).write_text(held)
    done = call(main, tmp_path, "--cpu")
    assert done.returncode == 2 and "name another folder" in done.stderr
    assert (tmp_path / name).read_text() == held and list(tmp_path.iterdir()) == [tmp_path / name]


@pytest.mark.slow
def test_without_a_gpu_it_says_what_to_do(tmp_path):
    done = run_tiny(tmp_path / "run")
    assert done.returncode == 2 and "--cpu" in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.fixture
def forgetful(tmp_path, small_base):
    weights = load_file(small_base / "model.safetensors")
    for path in small_base.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    forget_beacons(tmp_path)
    return weights, tmp_path


def test_forgotten_beacons_start_as_copies_again(forgetful):
    weights, folder = forgetful
    kept = load_file(folder / "model.safetensors")
    assert {name for name in weights if name not in kept} == {name for name in weights if "beacon_" in name}
    attention = load_pretrained_model(folder, device_map="cpu")[1].model.layers[0].self_attn
    assert torch.equal(attention.beacon_k_proj.weight, attention.k_proj.weight)
