"""The three stage scripts and every launcher, on two CPU processes, at tiny size."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import pytest
import torch
from conftest import ROOT, TINY
from safetensors.torch import load_file
from training_data import losses, weights_of

from videoxl.model.loading import load_pretrained_model

pytest.importorskip("deepspeed", reason="needs the extra train")
pytestmark = pytest.mark.slow  # each test starts several processes
CPU = "--use_cpu True --bf16 False --report_to none"
COMMON = f"{CPU} --image_aspect_ratio anyres --beacon_ratio 2 4 8 --learning_rate 1e-3 --max_steps 3 --logging_steps 1"
COMMON += " --per_device_train_batch_size 1"
PORT = 29641
LIMIT = 300  # seconds for one command; the first ones compile an operation


def environment(**settings) -> dict[str, str]:
    values = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "PYTHON": sys.executable, "GPUS": "2", "WORKERS": "0"}
    values |= {"MASTER_PORT": str(PORT), "PYTHONWARNINGS": "ignore"}
    return os.environ | values | {name: str(value) for name, value in settings.items()}


def run(script: str, extra: str, **settings) -> None:
    """A script of the repository."""
    succeed(["bash", f"scripts/{script}.sh", *extra.split()], settings)


def succeed(command: list[str], settings: dict) -> None:
    """Run a command to its end. What it printed is shown where it fails; none of its processes outlives it."""
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment(**settings), stdout=log, stderr=log, start_new_session=True
        )
        try:
            status = process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            status = f"still running after {LIMIT} s"
            os.killpg(process.pid, signal.SIGTERM)  # torchrun's workers are in groups of their own: it ends them itself
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(30)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        log.seek(0)
        assert status == 0, f"{status}\n{log.read()[-9000:]}"


def launch(folder, data, extra: str = "", deepspeed: str = "", launcher: str = "deepspeed", model=TINY) -> list[float]:
    """Any launcher on the mixed records; losses by step."""
    script = (
        f". scripts/launch.sh; launch '' --model_name_or_path {model} --data_path {data}/mixed.json "
        f"--output_dir {folder} {COMMON} --save_strategy no --unfreeze_mm_vision_tower True {extra}"
    )
    settings = {"DEEPSPEED": f"configs/deepspeed/{deepspeed}.json" if deepspeed else "", "LAUNCHER": launcher}
    succeed(["bash", "-euc", script], settings)
    return losses(folder)


@pytest.fixture(scope="module")
def stages(data, base, tmp_path_factory):
    """The folders of the three stages, run one after the other by their scripts."""
    folder = tmp_path_factory.mktemp("stages")
    settings = {"MODEL": base[0], "VISION_TOWER": base[1], "IMAGE_FOLDER": data, "VIDEO_FOLDER": data}
    one, two, three = (folder / name for name in ("pretrain", "finetune_i", "finetune_v"))
    run(
        "pretrain",
        f"{CPU} --gradient_accumulation_steps 1",
        **settings,
        DATA=data / "captions.json",
        OUTPUT=one,
        BATCH=2,
        EPOCHS=2,
    )
    projector = one / "mm_projector.bin"
    pictures = data / "pictures.json"
    records = json.loads((data / "mixed.json").read_text())
    pictures.write_text(json.dumps([record for record in records if isinstance(record.get("image"), str)]))
    rate = {"LEARNING_RATE": "1e-3", "ACCUMULATE": 1, "PROJECTOR": projector}
    run("finetune_i", CPU, **settings, **rate, DATA=pictures, OUTPUT=two)
    run("finetune_v", CPU, **settings, **rate, DATA=data / "mixed.json", OUTPUT=three, FRAMES=12, EPOCHS=1)
    return one, two, three


def test_stage_one_writes_a_projector_that_has_learnt(stages, base):
    one, _, _ = stages
    stored = torch.load(one / "mm_projector.bin", weights_only=True)
    assert sorted(stored) == [f"model.mm_projector.{n}.{kind}" for n in (0, 2) for kind in ("bias", "weight")]
    assert not (one / "model.safetensors").exists()
    assert json.loads((one / "config.json").read_text())["enable_beacon"] is False
    found = losses(one)
    assert len(found) == 4 and all(4 < loss < 8 for loss in found)
    _, model, _, _ = load_pretrained_model(one, base[0], device_map="cpu")  # as stage two takes it
    torch.testing.assert_close(
        model.model.mm_projector[0].weight.float(), stored["model.mm_projector.0.weight"].float()
    )


def test_stage_two_and_three_move_what_they_should(stages, base):
    one, two, three = stages
    projector = torch.load(one / "mm_projector.bin", weights_only=True)
    plain = load_file(base[0] / "model.safetensors")
    tower = load_file(base[1] / "model.safetensors")
    for folder in (two, three):
        after = weights_of(folder)
        prefix = "model.vision_tower.vision_tower.vision_model."
        start = plain | projector | {prefix + name: value for name, value in tower.items()}
        beacons = [name for name in after if "beacon_" in name]
        start |= {name: plain[name.replace("beacon_", "")] for name in beacons if "proj" in name}
        start["model.beacon_embed_tokens.weight"] = plain["model.embed_tokens.weight"][258:259]
        assert start.keys() == after.keys()
        still = {name for name in after if torch.equal(after[name].float(), start[name].float())}
        unreached = {n for n in after if f"{prefix}encoder.layers.2." in n or f"{prefix}post_layernorm" in n}
        last_query = {f"model.layers.2.self_attn.beacon_q_proj.{kind}" for kind in ("weight", "bias")}
        key_biases = {n for n in after if n.endswith("k_proj.bias")}  # softmax does not feel them
        assert unreached <= still <= unreached | last_query | key_biases, sorted(still - unreached)


def test_the_final_checkpoint_loads_and_asks(stages):
    command = [
        sys.executable,
        "-m",
        "videoxl.cli",
        "ask",
        "assets/sample.mp4",
        "What?",
        "--model",
        stages[2],
        "--frames",
        "12",
    ]
    done = subprocess.run(
        [*map(str, command), "--max-new-tokens", "4"], capture_output=True, text=True, cwd=ROOT, timeout=120
    )
    assert done.returncode == 0, done.stderr


def test_zero2_zero3_data_parallel_fsdp2_and_one_process_give_the_same_losses(data, tmp_path):
    one = launch(tmp_path / "one", data, "--gradient_accumulation_steps 2 --max_steps 7", launcher="python")
    assert one[-1] < one[0] - 0.5
    wrapped = '{"fsdp_version":2,"transformer_layer_cls_to_wrap":["BeaconDecoderLayer","CLIPEncoderLayer"]}'
    ways = {
        "zero2": {"deepspeed": "zero2"},
        "zero3": {"deepspeed": "zero3"},
        "ddp": {"launcher": "torchrun"},
        "fsdp2": {"launcher": "torchrun", "extra": f"--fsdp full_shard --fsdp_config '{wrapped}'"},
    }
    for name, settings in ways.items():
        extra = settings.pop("extra", "") + " --max_steps 7"  # every kind of sample beside every other
        assert launch(tmp_path / name, data, extra, **settings) == pytest.approx(one, abs=5e-4), name
        left, right = weights_of(tmp_path / "one"), weights_of(tmp_path / name)
        assert left.keys() == right.keys()
        # Adam divides by the size of a gradient: where that is rounding alone, so is the step's direction.
        close = [torch.isclose(left[key].float(), right[key].float(), atol=2e-3).float().mean() for key in left]
        assert min(close) > 0.95, name


def test_adapters_under_zero3_learn_as_in_one_process(data, tmp_path):
    extra = "--lora_enable True --lora_r 4 --lora_dropout 0 --max_steps 5"
    one = launch(tmp_path / "one", data, f"{extra} --gradient_accumulation_steps 2", launcher="python")
    assert launch(tmp_path / "zero3", data, extra, deepspeed="zero3") == pytest.approx(one, abs=5e-3)
    _, left, _, _ = load_pretrained_model(tmp_path / "one", TINY, device_map="cpu", torch_dtype=torch.float32)
    _, right, _, _ = load_pretrained_model(tmp_path / "zero3", TINY, device_map="cpu", torch_dtype=torch.float32)
    for (name, a), b in zip(left.named_parameters(), right.parameters()):
        assert torch.isclose(a, b, atol=5e-3).float().mean() > 0.95, name


def test_beacons_that_a_base_lacks_start_as_copies_under_zero3(data, base, tmp_path):
    extra = f"--vision_tower {base[1]} --learning_rate 0 --max_steps 1"
    launch(tmp_path / "o", data, extra, deepspeed="zero3", model=base[0])
    stored, plain = weights_of(tmp_path / "o"), load_file(base[0] / "model.safetensors")
    tower = load_file(base[1] / "model.safetensors")
    for name, value in plain.items():
        assert torch.equal(stored[name].float(), value.float()), name
        twin = (
            name.replace(".q_proj", ".beacon_q_proj")
            .replace(".k_proj", ".beacon_k_proj")
            .replace(".v_proj", ".beacon_v_proj")
        )
        assert torch.equal(stored[twin].float(), value.float()), twin
    for name, value in tower.items():
        assert torch.equal(stored[f"model.vision_tower.vision_tower.vision_model.{name}"].float(), value.float()), name
    assert torch.equal(
        stored["model.beacon_embed_tokens.weight"][0].float(), plain["model.embed_tokens.weight"][258].float()
    )


def test_a_killed_zero3_run_goes_on_with_the_same_losses(data, tmp_path):
    extra = "--max_steps 6 --save_strategy steps --save_steps 2 --eval_strategy steps --eval_steps 4"
    extra += f" --eval_data {data}/captions.json --eval_generation True --eval_max_new_tokens 3"
    whole = launch(tmp_path / "whole", data, extra, deepspeed="zero3")
    (tmp_path / "cut").mkdir()
    shutil.copytree(tmp_path / "whole" / "checkpoint-2", tmp_path / "cut" / "checkpoint-2")
    assert launch(tmp_path / "cut", data, extra, deepspeed="zero3") == pytest.approx(whole, abs=1e-6)
    history = json.loads((tmp_path / "cut" / "trainer_state.json").read_text())["log_history"]
    assert next(entry for entry in history if "eval_loss" in entry)["eval_answers"] == 4


def test_the_program_under_its_published_path_and_a_kill_of_the_launcher(data, tmp_path):
    """`deepspeed videoxl/train/train.py`, killed while it trains: every checkpoint that is there is whole."""
    flags = (
        f"--model_name_or_path {TINY} --data_path {data}/mixed.json --output_dir {tmp_path}/o {COMMON} --save_steps 2"
    )
    command = [sys.executable, "-m", "deepspeed.launcher.runner", "--num_gpus", "2", "--master_port", str(PORT)]
    command += ["videoxl/train/train.py", "--deepspeed", "scripts/zero2.json", *flags.split(), "--max_steps", "400"]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=log, stderr=log, start_new_session=True)
        deadline = time.time() + 240
        while not (tmp_path / "o" / "checkpoint-2").is_dir():
            assert process.poll() is None and time.time() < deadline, (tmp_path / "log").read_text()[-3000:]
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    subprocess.run(["pkill", "-9", "-f", f"{tmp_path}/o"], check=False)
    for folder in (tmp_path / "o").glob("checkpoint-*"):
        assert (folder / "trainer_state.json").is_file() and (folder / "latest").is_file()
    assert "is taken from configs/deepspeed/" in (tmp_path / "log").read_text()


@pytest.mark.parametrize("script", ["pretrain", "finetune_i", "finetune_v"])
def test_scripts_say_what_is_missing(tmp_path, script):
    command = ["bash", f"scripts/{script}.sh", "--use_cpu", "True", "--bf16", "False", "--deepspeed", ""]
    settings = environment(MODEL=TINY, DATA="nowhere.json", OUTPUT=tmp_path / "o", LAUNCHER="python", DEEPSPEED="")
    done = subprocess.run(command[:-2], capture_output=True, text=True, cwd=ROOT, env=settings, timeout=120)
    assert done.returncode == 2 and "error: no such file of records: nowhere.json" in done.stderr
