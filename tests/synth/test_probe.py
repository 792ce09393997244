"""The probe of a tower: finds what features hold, and nothing where they hold nothing."""

import torch

from videoxl.model.loading import load_pretrained_model
from videoxl.synth.cards import Card
from videoxl.synth.probe import features_of_cards, fit, main, probe


def test_a_fit_finds_what_features_hold():
    generator = torch.Generator().manual_seed(0)
    classes = torch.randint(4, (300,), generator=generator)
    features = torch.randn(300, 12, generator=generator)
    features[:, :4] += 3 * torch.nn.functional.one_hot(classes, 4)
    weights = fit(features[:200], classes[:200], 4)
    inputs = torch.cat([features[200:], torch.ones(100, 1)], dim=1).double()
    assert ((inputs @ weights).argmax(dim=1) == classes[200:]).float().mean() > 0.9


def test_even_random_towers_tell_red_from_black_and_the_report_is_repeatable(small_base, capsys):
    _, model, processor, _ = load_pretrained_model(small_base, device_map="cpu")
    features, shown = features_of_cards(model, processor, [Card("red", "star"), Card("black", "star")], 60, seed=0)
    classes = torch.tensor([card.colour == "red" for card in shown]).long()
    inputs = (features - features.mean(dim=0)) / (features.std(dim=0) + 1e-6)
    weights = fit(inputs, classes, 2)
    right = torch.cat([inputs, torch.ones(60, 1)], dim=1).double() @ weights
    assert (right.argmax(dim=1) == classes).float().mean() > 0.9
    report = probe(model, processor, pictures=80, tested=40)
    assert set(report) == {f"{which}_{what}" for which in ("trained", "held_out") for what in ("colour", "shape")}
    assert report == probe(model, processor, pictures=80, tested=40)
    assert all(0 <= share <= 1 for share in report.values())


def test_a_wrong_path_is_one_line(capsys):
    assert main(["/nowhere/at/all"]) == 2
    assert "no such checkpoint" in capsys.readouterr().err
