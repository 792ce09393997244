"""Whole runs of the program in one process on the CPU: what it says, writes, refuses, and takes up again."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY
from PIL import Image
from training_data import losses, run_training, turns, weights_of

from videoxl.model.loading import load_pretrained_model
from videoxl.train.cli import main

BASICS = {
    "use_cpu": True,
    "model_name_or_path": TINY,
    "image_aspect_ratio": "anyres",
    "beacon_ratio": "2 4 8",
    "learning_rate": 1e-3,
    "logging_steps": 1,
    "per_device_train_batch_size": 1,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
}


def flags(**settings) -> list[str]:
    merged = {name: value for name, value in (BASICS | settings).items() if value is not None}
    return [part for name, value in merged.items() for part in (f"--{name}", *str(value).split(" "))]


def train(folder, data, **settings) -> list[float]:
    """A run in this process; its losses."""
    settings = {"data_path": data / "mixed.json", "output_dir": folder, "max_steps": 3} | settings
    assert main(flags(**settings)) == 0
    return losses(folder)


def test_a_dry_run_tells_plan_memory_and_first_batch_and_writes_no_model(data, tmp_path, capsys):
    assert main(flags(data_path=data / "mixed.json", output_dir=tmp_path / "o", dry_run=True, lora_enable=True)) == 0
    said = capsys.readouterr().out
    assert "samples      10 (6 image, 2 text, 2 video); unreadable 0" in said
    assert "windows of 1440, ratios [2, 4, 8] (step-random)" in said
    assert "memory       about" in said and "learning     mm_language_model" in said
    assert "<|im_end|>\n<|im_start|>]]assistant\n[[" in said  # what is learnt is marked
    assert "0: 2 samples, 1: 5 samples, 2: 3 samples" in said
    assert not (tmp_path / "o" / "config.json").exists()


@pytest.mark.slow
def test_a_run_writes_a_checkpoint_that_asks_and_figures_that_can_be_read(data, tmp_path):
    found = train(tmp_path / "o", data, report_to="tensorboard", unfreeze_mm_vision_tower=True, max_steps=4)
    assert found[-1] < found[0] - 0.5
    _, model, _, context = load_pretrained_model(tmp_path / "o", device_map="cpu")
    assert context == 32768 and list(model.config.beacon_ratio) == [2, 4, 8]
    command = [sys.executable, "-m", "videoxl.cli", "ask", ROOT / "assets/sample.mp4", "What?", "--frames", "4"]
    done = subprocess.run(
        [*map(str, command), "--model", str(tmp_path / "o"), "--max-new-tokens", "4"],
        capture_output=True, text=True, cwd=ROOT, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "o" / "loss.png") as picture:
        assert picture.size == (960, 540)
    assert list((tmp_path / "o" / "runs").rglob("events.out.tfevents*"))
    entry = json.loads((tmp_path / "o" / "trainer_state.json").read_text())["log_history"][0]
    assert {"tokens_per_second", "visual_tokens", "ratio_2", "ratio_4", "ratio_8", "bad_samples"} <= entry.keys()


def test_a_finished_run_is_not_replaced_unless_asked(data, tmp_path, capsys):
    train(tmp_path / "o", data, max_steps=1)
    before = (tmp_path / "o" / "model.safetensors").stat().st_mtime_ns
    assert main(flags(data_path=data / "mixed.json", output_dir=tmp_path / "o", max_steps=1)) == 2
    assert "holds a finished run" in capsys.readouterr().err
    assert (tmp_path / "o" / "model.safetensors").stat().st_mtime_ns == before
    (tmp_path / "o" / "checkpoint-90").mkdir()  # of the earlier run: newer by its name
    settings = {"overwrite_output_dir": True, "save_strategy": "steps", "save_steps": 1, "save_total_limit": 1}
    train(tmp_path / "o", data, max_steps=2, **settings)
    assert [path.name for path in (tmp_path / "o").glob("checkpoint-*")] == ["checkpoint-2"]


@pytest.mark.slow
def test_a_run_that_is_killed_goes_on_with_the_same_losses(data, tmp_path):
    settings = {"max_steps": 14, "save_strategy": "steps", "save_steps": 2, "gradient_accumulation_steps": 2}
    settings |= {"group_by_stride": "relaxed", "lr_scheduler_type": "cosine", "position_gap_max": 50}
    whole = train(tmp_path / "whole", data, **settings)
    assert len(whole) == 14  # into the fourth epoch
    command = [
        sys.executable,
        "-m",
        "videoxl.train",
        *flags(data_path=data / "mixed.json", output_dir=tmp_path / "cut", **settings),
    ]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.time() + 120
    while not (tmp_path / "cut" / "checkpoint-4").is_dir():
        assert process.poll() is None and time.time() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "cut" / "config.json").exists()
    again = train(tmp_path / "cut", data, **settings)
    assert again == whole
    left, right = weights_of(tmp_path / "whole"), weights_of(tmp_path / "cut")
    assert all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.slow
def test_adapters_are_saved_resumed_loaded_and_merged(data, tmp_path):
    settings = {
        "lora_enable": True,
        "lora_r": 4,
        "lora_dropout": 0.0,
        "unfreeze_mm_vision_tower": True,
        "save_steps": 2,
    }
    whole = train(tmp_path / "whole", data, max_steps=4, save_strategy="steps", **settings)
    names = {path.name for path in (tmp_path / "whole").iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "non_lora_trainables.bin", "config.json"} <= names
    (tmp_path / "part").mkdir()
    shutil.copytree(tmp_path / "whole" / "checkpoint-2", tmp_path / "part" / "checkpoint-2")
    assert train(tmp_path / "part", data, max_steps=4, save_strategy="steps", **settings) == pytest.approx(
        whole, abs=1e-6
    )
    _, adapted, _, _ = load_pretrained_model(tmp_path / "whole", TINY, device_map="cpu", torch_dtype=torch.float32)
    _, start, _, _ = load_pretrained_model(TINY, device_map="cpu", torch_dtype=torch.float32)
    moved = {n for (n, a), b in zip(adapted.named_parameters(), start.parameters()) if not torch.equal(a, b)}
    assert {"model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.beacon_k_proj.weight"} <= moved
    assert {"model.mm_projector.0.weight", "model.beacon_embed_tokens.weight"} <= moved
    assert "model.embed_tokens.weight" not in moved and "model.layers.0.input_layernorm.weight" not in moved
    command = [
        sys.executable,
        "-m",
        "videoxl.train.merge",
        tmp_path / "whole",
        "--base",
        TINY,
        "--output",
        tmp_path / "new" / "m",
    ]
    done = subprocess.run(
        [*map(str, command), "--dtype", "float32"], capture_output=True, text=True, cwd=ROOT, timeout=120
    )
    assert done.returncode == 0, done.stderr
    merged = weights_of(tmp_path / "new" / "m")
    assert all(torch.equal(merged[name], value) for name, value in adapted.state_dict().items())
    again = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert again.returncode == 2 and "exists" in again.stderr


@pytest.mark.slow
@pytest.mark.parametrize("bits", [4, 8])
def test_adapters_on_quantised_weights_and_beacons_that_start_as_copies(data, base, tmp_path, bits):
    settings = {"bits": bits, "bf16": True, "lora_enable": True, "lora_r": 4, "max_steps": 2}
    settings |= {"model_name_or_path": base[0], "vision_tower": base[1], "data_path": data / "mixed.json"}
    done = run_training(*flags(output_dir=tmp_path / "o", **settings))
    assert done.returncode == 0, done.stderr[-2000:]
    found = losses(tmp_path / "o")
    assert all(np.isfinite(found)) and 5 < found[0] < 7
    assert (tmp_path / "o" / "adapter_model.safetensors").is_file()


def test_evaluation_gives_loss_and_exact_matches_at_a_fixed_ratio(data, tmp_path):
    lesson = [{"id": "a", "image": "red.png", "conversations": turns("<image>\nWhich colour?", "red")}]
    (data / "lesson.json").write_text(json.dumps(lesson))
    wrong = [{"id": "b", "image": "red.png", "conversations": turns("<image>\nWhich colour?", "blue")}]
    (data / "both.json").write_text(json.dumps(lesson + wrong))
    settings = {"eval_data": data / "both.json", "eval_strategy": "steps", "eval_steps": 40, "eval_generation": True}
    train(tmp_path / "o", data, data_path=data / "lesson.json", max_steps=40, eval_max_new_tokens=4, **settings)
    history = json.loads((tmp_path / "o" / "trainer_state.json").read_text())["log_history"]
    found = next(entry for entry in history if "eval_loss" in entry)
    assert found["eval_exact_match"] == 0.5 and found["eval_answers"] == 2  # it learnt one answer by heart
    assert found["eval_loss"] > 0.2 and found["eval_tokens"] > 10


def test_evaluation_data_alone_is_evaluated_at_the_end(data, tmp_path):
    train(tmp_path / "o", data, max_steps=1, eval_data=data / "captions.json")
    history = json.loads((tmp_path / "o" / "trainer_state.json").read_text())["log_history"]
    assert sum("eval_loss" in entry for entry in history) == 1


def test_samples_that_break_while_training_are_replaced_and_counted(data, tmp_path):
    folder = tmp_path / "d"
    shutil.copytree(data, folder)
    records = json.loads((folder / "captions.json").read_text())[:3]
    (folder / "c.json").write_text(json.dumps(records))
    red = folder / "red.png"
    red.write_bytes(red.read_bytes()[:400])
    train(tmp_path / "o", data, data_path=folder / "c.json", max_bad_fraction=0.5, max_steps=3)
    lines = [json.loads(line) for line in (tmp_path / "o" / "bad_samples.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == ["c0"] and "red.png" in lines[0]["reason"]
    history = json.loads((tmp_path / "o" / "trainer_state.json").read_text())["log_history"]
    assert [entry["bad_samples"] for entry in history if "loss" in entry][-1] == 1


def grid(**changes):
    return {"image_grid_pinpoints": "[(336,500)]", **changes}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data_path": "nowhere.json"}, "no such file of records: nowhere.json"),
        ({"model_name_or_path": "nowhere"}, "cannot read the configuration of nowhere"),
        ({"pretrain_mm_mlp_adapter": "nowhere.bin"}, "no such projector: nowhere.bin"),
        ({"beacon_attn": "segmentation"}, "config key 'beacon_attn' is 'segmentation'"),
        ({"beacon_ratio": "7"}, None),
        (grid(), "multiples of 336; it holds (336, 500)"),
        ({"model_max_length": 40}, "no sample of"),
        ({"deepspeed": "nowhere.json"}, "no such file"),
        ({"resume_from_checkpoint": "nowhere"}, "no checkpoint folder"),
        ({"cache_features": "features", "unfreeze_mm_vision_tower": True}, "a vision tower that is frozen"),
    ],
)
def test_bad_input_is_said_before_anything_is_trained(data, tmp_path, capsys, settings, message):
    code = main(flags(**{"data_path": data / "mixed.json", "output_dir": tmp_path / "o", "max_steps": 1} | settings))
    if message is None:
        assert code == 0  # any ratio up to the window works alone
        return
    assert code == 2
    said = capsys.readouterr().err
    assert "error: " in said and message in said
    assert "Traceback" not in said


def test_a_missing_video_among_few_samples_stops_the_run_before_it_starts(data, tmp_path, capsys):
    records = json.loads((data / "mixed.json").read_text())
    records[0]["image"] = "gone.png"
    (data / "holes.json").write_text(json.dumps(records))
    assert main(flags(data_path=data / "holes.json", output_dir=tmp_path / "o")) == 2
    said = capsys.readouterr().err
    assert "1 of 10 samples cannot be read" in said and "gone.png" in said and "--max_bad_fraction" in said


def test_a_base_without_chat_tokens_is_refused(data, base, tmp_path, capsys):
    folder = tmp_path / "plain"
    shutil.copytree(base[0], folder)
    for path in folder.glob("tokenizer*"):
        path.write_text(path.read_text().replace("<|im_start|>", "<|other|>"))
    code = main(
        flags(model_name_or_path=folder, vision_tower=base[1], data_path=data / "mixed.json", output_dir=tmp_path / "o")
    )
    assert code == 2 and "has no <|im_start|>" in capsys.readouterr().err


def test_samples_past_the_longest_length_are_left_out_and_named(data, tmp_path, capsys):
    train(tmp_path / "o", data, model_max_length=2000, beacon_ratio="2", max_steps=1)
    said = capsys.readouterr().err
    assert "1 of 10 samples" in said and "v1, needs" in said


# -- training from nothing -------------------------------------------------------------------------------------------


def test_a_tower_learns_classes_under_heads_that_are_thrown_away(data, tmp_path):
    records = [
        {"id": name, "image": f"{name}.png", "classes": {"colour": name, "warm": str(name == "red")}}
        for name in ("red", "green", "blue")
    ]
    (data / "classes.json").write_text(json.dumps(records))
    settings = {"data_path": data / "classes.json", "train_task": "vision_classes", "image_aspect_ratio": "square"}
    settings |= {
        "per_device_train_batch_size": 3,
        "max_steps": 20,
        "learning_rate": 3e-3,
        "eval_data": data / "classes.json",
    }
    found = train(tmp_path / "o", data, eval_strategy="steps", eval_steps=20, **settings)
    assert found[0] > 0.5 and found[-1] < 0.1
    start, end = weights_of(TINY), weights_of(tmp_path / "o")
    assert start.keys() == end.keys()  # no heads
    moved = {name for name in start if not torch.equal(start[name].float(), end[name].float())}
    assert moved and all("vision_tower" in name for name in moved)
    history = json.loads((tmp_path / "o" / "trainer_state.json").read_text())["log_history"]
    assert next(entry for entry in history if "eval_loss" in entry)["eval_accuracy"] == 1.0


def test_the_decoder_learns_from_text_alone(data, tmp_path):
    (data / "words.json").write_text(json.dumps([{"conversations": turns("Say yes.", "yes")}] * 2))
    found = train(
        tmp_path / "o", data, data_path=data / "words.json", mm_tunable_parts="mm_language_model", max_steps=8
    )
    assert found[-1] < found[0] / 2
    start, end = weights_of(TINY), weights_of(tmp_path / "o")
    still = {name for name in start if torch.equal(start[name].float(), end[name].float())}
    assert all(name in still for name in start if "vision_tower" in name or "mm_projector" in name)


def test_shared_questions_gaps_truncation_and_draws_a_sample_work_together(data, tmp_path):
    record = {
        "id": "v", "video": "long.mp4", "evidence": [[0.0, 2.0]],
        "conversations": [turns("<image>\nOne?", "1"), turns("<image>\nTwo?", "2"), turns("<image>\nAnd three?", "3")],
    }  # fmt: skip
    (data / "shared.json").write_text(json.dumps([record]))
    settings = {"data_path": data / "shared.json", "position_gap_max": 500, "bptt_windows": 1, "max_steps": 4}
    found = train(tmp_path / "o", data, beacon_ratio_mix="instance-random", unfreeze_mm_vision_tower=True, **settings)
    assert found[-1] < found[0]
    state = json.loads((tmp_path / "o" / "trainer_state.json").read_text())["log_history"]
    for entry in state:
        if "loss" in entry:  # one ratio for both windows of the only sample
            assert sorted(entry[f"ratio_{ratio}"] for ratio in (2, 4, 8)) == [0, 0, 1]


def test_features_of_a_still_tower_are_made_once_and_give_the_same_losses(data, tmp_path, monkeypatch):
    settings = {"max_steps": 4, "tune_mm_mlp_adapter": True}
    plain = train(tmp_path / "plain", data, **settings)
    first = train(tmp_path / "first", data, cache_features=tmp_path / "features", **settings)
    stored = sorted(path for path in (tmp_path / "features").rglob("*.safetensors"))
    assert len(stored) == 6
    assert first == pytest.approx(plain, abs=0.03)  # they are kept in bf16
    from videoxl.train.data import dataset

    monkeypatch.setattr(dataset, "open_video", lambda *_, **__: pytest.fail("a video was opened again"))
    assert train(tmp_path / "second", data, cache_features=tmp_path / "features", **settings) == first
    assert sorted(path for path in (tmp_path / "features").rglob("*.safetensors")) == stored
