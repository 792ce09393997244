"""The trainer's own steps: equal to the record, checkpointed, resumable, with the right parameters learning."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from conftest import load_golden_model

from videoxl.errors import ArgumentError
from videoxl.train.checkpoints import list_checkpoints
from videoxl.train.config import ModelArguments, TrainingArguments
from videoxl.train.data.dataset import Sample
from videoxl.train.data.plans import SamplePlan
from videoxl.train.trainable import freeze_others, learning_parts, parameter_groups
from videoxl.train.trainer import VideoXLTrainer

CASES = ["train_video_12f_r8", "train_image_2x2_r4", "train_pretrain_stage_video_4f"]


class OneSample(torch.utils.data.Dataset):
    """A data set of one recorded sample, again and again."""

    def __init__(self, case: dict, length: int):
        views = case["frames"] or case["image"][2]
        pixels = np.random.default_rng(case["seed"]).standard_normal((views, 3, 336, 336)).astype(np.float32)
        self.kind = "video" if case["frames"] else "image"
        self.visual = torch.from_numpy(pixels)
        self.encoded = [(case["input_ids"], case["labels"])]
        self.records, self.unreadable = [None] * length, []
        self.plans = [SamplePlan((19,), ((self.kind, 144 * views),), 62)] * length

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key) -> Sample:
        epoch, index = key
        return Sample(index, epoch, str(index), self.kind, self.encoded, [self.visual], [[]])


def make_trainer(golden, case: dict, folder, **kwargs) -> VideoXLTrainer:
    _, model, processor, _ = load_golden_model(golden)
    model.config.beacon_ratio = case["ratio"]
    if case["naive"]:
        model.config.enable_beacon, model.config.mm_patch_merge_type = False, "flat"
    freeze_others(model, learning_parts(ModelArguments(unfreeze_mm_vision_tower=True)))
    settings = {
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "num_train_epochs": 1,
        "weight_decay": 0.0,
        "logging_steps": 1,
        "save_strategy": "no",
        "per_device_train_batch_size": 1,
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
    }
    args = TrainingArguments(output_dir=str(folder), **settings | kwargs)
    if args.checkpoint_windows:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return VideoXLTrainer(model, args, OneSample(case, 3), processor)


@pytest.mark.parametrize("name", CASES)
def test_three_steps_of_the_trainer_equal_the_record(golden, tmp_path, name):
    case = json.loads((golden / f"{name}.json").read_text())
    trainer = make_trainer(golden, case, tmp_path)
    norms = {}
    step = trainer.training_step

    def watched(*args, **kwargs):
        loss = step(*args, **kwargs)
        if not norms:
            norms.update(
                {n: None if p.grad is None else p.grad.norm().item() for n, p in trainer.model.named_parameters()}
            )
        return loss

    trainer.training_step = watched
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    np.testing.assert_allclose(losses, case["losses"], atol=2e-3)
    for parameter, recorded in case["grad_norms"].items():
        assert abs((norms[parameter] or 0.0) - (recorded or 0.0)) <= max(1e-6, 0.01 * (recorded or 0.0)), parameter


def test_no_step_walks_over_the_modules(golden, tmp_path, monkeypatch):
    """Of a run of three steps, transformers' loop changes modes and gradients by a walk once, before the first one."""
    case = json.loads((golden / f"{CASES[0]}.json").read_text())
    trainer = make_trainer(golden, case, tmp_path)
    walks = {"train": [], "zero_grad": []}
    for name, calls in walks.items():
        walk = getattr(torch.nn.Module, name)

        def watched(module, *args, walk=walk, calls=calls, **kwargs):
            if module is trainer.model:
                calls.append(trainer.state.global_step)
            return walk(module, *args, **kwargs)

        monkeypatch.setattr(torch.nn.Module, name, watched)
    trainer.train()
    assert trainer.state.global_step == 3 and walks == {"train": [0], "zero_grad": []}
    trainer.model.zero_grad()
    assert walks["zero_grad"] == [3], "after the run, gradients are found by a walk again"


def test_accumulated_batches_weigh_by_their_labels(golden, tmp_path):
    """Two samples with one and with twenty labels: the mean is over tokens, as in one batch, not over samples."""
    case = json.loads((golden / f"{CASES[0]}.json").read_text())
    few = case | {"labels": [-100] * (len(case["labels"]) - 1) + case["labels"][-1:]}

    def first_loss(cases, accumulate: int, batch: int) -> float:
        trainer = make_trainer(
            golden,
            case,
            tmp_path,
            gradient_accumulation_steps=accumulate,
            per_device_train_batch_size=batch,
            max_steps=1,
        )
        data = trainer.train_dataset
        data.records, data.plans = data.records[:2], data.plans[:2]
        read = data.__class__.__getitem__

        def pick(key):
            sample = read(data, key)
            sample.encoded = [(case["input_ids"], cases[key[1]]["labels"])]
            return sample

        trainer.train_dataset = type("Picked", (), {"__getitem__": lambda _, key: pick(key), "__len__": lambda _: 2})()
        trainer.train_dataset.plans, trainer.train_dataset.records = data.plans, data.records
        trainer.train()
        return next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry)

    together = first_loss([case, few], 1, 2)
    apart = first_loss([case, few], 2, 1)
    assert apart == pytest.approx(together, abs=1e-5)
    alone = [first_loss([one, one], 2, 1) for one in (case, few)]
    assert abs(together - sum(alone) / 2) > 0.01  # the test can tell the two means apart


def test_learning_rates_by_part(golden, tmp_path):
    case = json.loads((golden / f"{CASES[0]}.json").read_text())
    trainer = make_trainer(golden, case, tmp_path, mm_projector_lr=1e-4, mm_vision_tower_lr=1e-6, weight_decay=0.1)
    rates = {}
    names = {id(p): name for name, p in trainer.model.named_parameters()}
    for group in trainer.create_optimizer().param_groups:
        for parameter in group["params"]:
            rates[names[id(parameter)]] = (group["lr"], group["weight_decay"])
    assert rates["model.mm_projector.0.weight"] == (1e-4, 0.1)
    assert rates["model.mm_projector.0.bias"] == (1e-4, 0.0)
    assert rates["model.layers.0.self_attn.q_proj.weight"] == (1e-3, 0.1)
    assert rates["model.layers.0.input_layernorm.weight"] == (1e-3, 0.0)
    tower = "model.vision_tower.vision_tower.vision_model.encoder.layers.0.self_attn.q_proj"
    assert (rates[f"{tower}.weight"], rates[f"{tower}.bias"]) == ((1e-6, 0.1), (1e-6, 0.0))
    learning = {name for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert rates.keys() == learning
    assert parameter_groups(trainer.model, set(), 0.1, {})[0]["weight_decay"] == 0.0


def learning_names(model) -> dict[str, bool]:
    probes = {
        "tower": "model.vision_tower.vision_tower.vision_model.embeddings.class_embedding",
        "last tower layer": "model.vision_tower.vision_tower.vision_model.encoder.layers.2.mlp.fc1.weight",
        "projector": "model.mm_projector.0.weight",
        "decoder": "model.layers.0.mlp.up_proj.weight",
        "beacon": "model.layers.0.self_attn.beacon_q_proj.weight",
        "embedding": "model.embed_tokens.weight",
    }
    parameters = dict(model.named_parameters())
    return {probe for probe, name in probes.items() if parameters[name].requires_grad}


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({}, {"projector", "decoder", "beacon", "embedding"}),
        ({"unfreeze_mm_vision_tower": True}, {"tower", "projector", "decoder", "beacon", "embedding"}),
        ({"tune_mm_mlp_adapter": True}, {"projector"}),
        ({"mm_tunable_parts": "mm_mlp_adapter"}, {"projector"}),
        ({"mm_tunable_parts": "mm_vision_tower,mm_mlp_adapter"}, {"tower", "projector"}),
        ({"mm_tunable_parts": "mm_language_model"}, {"decoder", "beacon", "embedding"}),
        ({"mm_tunable_parts": "mm_beacon"}, {"beacon"}),
        ({"freeze_backbone": True}, {"projector"}),
        ({"freeze_mm_mlp_adapter": True}, {"decoder", "beacon", "embedding"}),
    ],
)
def test_the_parts_that_the_flags_name_learn(tiny, flags, expected):
    _, model, _ = tiny
    freeze_others(model, learning_parts(ModelArguments(**flags)))
    assert learning_names(model) == expected


def test_beacons_stand_still_where_nothing_is_compressed(tiny):
    _, model, _ = tiny
    model.config.enable_beacon = False
    freeze_others(model, learning_parts(ModelArguments()))
    assert learning_names(model) == {"projector", "decoder", "embedding"}


@pytest.mark.parametrize("parts", ["mm_vision", "", "mm_mlp_adapter,all"])
def test_unknown_parts_are_refused(parts):
    with pytest.raises(ArgumentError, match="the parts are"):
        learning_parts(ModelArguments(mm_tunable_parts=parts))


def test_everything_frozen_is_refused():
    with pytest.raises(ArgumentError, match="nothing is left"):
        learning_parts(ModelArguments(freeze_backbone=True, freeze_mm_mlp_adapter=True))


def test_a_save_that_ends_half_way_leaves_the_last_good_checkpoint(golden, tmp_path, monkeypatch):
    case = json.loads((golden / f"{CASES[2]}.json").read_text())
    trainer = make_trainer(golden, case, tmp_path, save_strategy="steps", save_steps=1, save_total_limit=2)
    save = trainer._save_rng_state

    def fails_at_two(folder: str) -> None:
        if trainer.state.global_step == 2:
            raise KeyboardInterrupt
        save(folder)

    monkeypatch.setattr(trainer, "_save_rng_state", fails_at_two)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-1"]
    assert {"model.safetensors", "optimizer.pt", "trainer_state.json"} <= {
        p.name for p in (tmp_path / "checkpoint-1").iterdir()
    }
    again = make_trainer(golden, case, tmp_path, save_strategy="steps", save_steps=1, save_total_limit=2)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-2", "checkpoint-3"]
    assert not (tmp_path / ".saving").exists()
    losses = [entry["loss"] for entry in again.state.log_history if "loss" in entry]
    np.testing.assert_allclose(losses, case["losses"], atol=2e-3)


def test_a_run_with_muon_goes_on_from_a_checkpoint_to_the_same_weights(golden, tmp_path):
    case = json.loads((golden / f"{CASES[2]}.json").read_text())
    flags = {"muon_lr": 2e-3, "lr_scheduler_type": "cosine", "weight_decay": 0.1}
    whole = make_trainer(golden, case, tmp_path, save_strategy="steps", save_steps=1, **flags)
    whole.train()
    assert next(entry["learning_rate"] for entry in whole.state.log_history if "loss" in entry) <= 1e-3  # not Muon's
    again = make_trainer(golden, case, tmp_path, save_strategy="steps", save_steps=1, **flags)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    wanted = dict(whole.model.named_parameters())
    assert all(torch.equal(weight, wanted[name]) for name, weight in again.model.named_parameters())
    without = make_trainer(golden, case, tmp_path, save_strategy="steps", save_steps=1)
    with pytest.raises(ArgumentError, match=r"checkpoint-2 is for other parameters .*--muon_lr"):
        without.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    plain = make_trainer(golden, case, tmp_path / "plain")
    plain.train()
    name = "model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(dict(plain.model.named_parameters())[name], wanted[name])


def test_muon_without_a_matrix_that_learns_is_refused(golden, tmp_path):
    case = json.loads((golden / f"{CASES[2]}.json").read_text())
    trainer = make_trainer(golden, case, tmp_path, muon_lr=1e-3)
    freeze_others(trainer.model, {"mm_mlp_adapter"})
    with pytest.raises(ArgumentError, match="muon_lr"):
        trainer.create_optimizer()


def test_matrices_of_a_tower_with_its_own_rate_have_that_share_of_muons(golden, tmp_path):
    case = json.loads((golden / f"{CASES[2]}.json").read_text())
    trainer = make_trainer(golden, case, tmp_path, muon_lr=4e-3, learning_rate=1e-3, mm_vision_tower_lr=1e-4)
    rates = {id(p): group["lr"] for group in trainer.create_optimizer().param_groups for p in group["params"]}
    names = dict(trainer.model.named_parameters())
    assert rates[id(names["model.layers.0.self_attn.q_proj.weight"])] == 4e-3
    tower = next(name for name in names if "vision_tower" in name and name.endswith("layers.0.mlp.fc1.weight"))
    assert rates[id(names[tower])] == pytest.approx(4e-4)
    assert rates[id(names[tower.replace("weight", "bias")])] == 1e-4
