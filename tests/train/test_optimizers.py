"""Muon and AdamW as one optimizer: each steps its own parameters, schedules reach both, a stored state goes on."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim import AdamW, Muon
from torch.optim.lr_scheduler import LambdaLR

from videoxl.errors import ArgumentError
from videoxl.train import optim as optimizers
from videoxl.train.config import DataArguments, ModelArguments, TrainingArguments, check_arguments
from videoxl.train.optim import MuonAndOther, is_for_muon
from videoxl.train.trainable import freeze_others, learning_parts


def make(seed=0):
    torch.manual_seed(seed)
    # Two matrices of one shape, a tall one and a wide one.
    return nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 8), nn.Linear(8, 3))


def joint(net):
    matrices = [{"params": [layer.weight for layer in net], "weight_decay": 0.1}]
    others = AdamW([{"params": [layer.bias for layer in net]}], lr=0.01)
    return MuonAndOther(matrices, 0.02, others)


def run(net, optimizers, steps, schedulers=()):
    for step in range(steps):
        inputs = torch.randn(8, 6, generator=torch.Generator().manual_seed(step))
        net(inputs).square().sum().backward()
        for optimizer in optimizers:
            optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
        net.zero_grad()
    return torch.cat([parameter.detach().flatten() for parameter in net.parameters()])


@pytest.mark.parametrize("most", [1, 72, 1 << 24])
def test_a_step_is_that_of_both(most, monkeypatch):
    monkeypatch.setattr(optimizers, "MOST_ELEMENTS", most)
    ours, plain = make(), make()
    muon = Muon(
        [{"params": [layer.weight for layer in plain], "weight_decay": 0.1}], lr=0.02, adjust_lr_fn="match_rms_adamw"
    )
    both = (muon, AdamW([layer.bias for layer in plain], lr=0.01))
    moved = run(plain, both, 4) - run(make(), [], 0)
    torch.testing.assert_close(run(ours, [joint(ours)], 4) - run(make(), [], 0), moved, rtol=0.05, atol=2e-3)
    assert not torch.equal(run(make(), [], 0), run(ours, [], 0))


def test_a_schedule_changes_both_rates():
    net = make()
    optimizer = joint(net)
    scheduler = LambdaLR(optimizer, lambda step: 0.5**step)
    run(net, [optimizer], 2, [scheduler])
    assert [group["lr"] for group in optimizer.param_groups] == [0.0025, 0.005]
    still = run(net, [], 0)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    assert torch.equal(run(net, [optimizer], 1), still)


def test_a_stored_state_goes_on_as_if_nothing_had_happened():
    whole, half, rest = make(), make(), make()
    wanted = run(whole, [joint(whole)], 4)
    first = joint(half)
    run(half, [first], 2)
    rest.load_state_dict(half.state_dict())
    second = joint(rest)
    second.load_state_dict(first.state_dict())
    for step in (2, 3):
        inputs = torch.randn(8, 6, generator=torch.Generator().manual_seed(step))
        rest(inputs).square().sum().backward()
        second.step()
        rest.zero_grad()
    assert torch.equal(run(rest, [], 0), wanted)


def test_matrices_of_the_layers_of_decoder_and_tower_are_for_muon(tiny):
    _, model, _ = tiny
    freeze_others(model, learning_parts(ModelArguments(mm_tunable_parts="mm_language_model,mm_vision_tower")))
    chosen = {name for name, parameter in model.named_parameters() if is_for_muon(name, parameter)}
    assert "model.layers.0.self_attn.q_proj.weight" in chosen and "model.layers.0.mlp.down_proj.weight" in chosen
    assert any("beacon_" in name for name in chosen)
    assert any("vision_tower" in name and name.endswith("mlp.fc1.weight") for name in chosen)
    assert not any(part in name for name in chosen for part in ("embed", "lm_head", "norm", "bias", "projector"))


@pytest.mark.parametrize(
    "flags",
    [
        {"muon_lr": -1.0},
        {"muon_lr": 1e-3, "fsdp": "full_shard"},
        {"muon_lr": 1e-3, "lora_enable": True},
        {"muon_lr": 1e-3, "optim": "adafactor"},
        {"muon_lr": 1e-3, "mm_vision_tower_lr": 1e-4, "learning_rate": 0.0},
    ],
)
def test_what_muon_cannot_do_is_refused(flags, tmp_path):
    training = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, **flags)
    with pytest.raises(ArgumentError, match="muon_lr"):
        check_arguments(ModelArguments(model_name_or_path="x"), DataArguments(data_path="x"), training)
