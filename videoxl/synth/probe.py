"""What a tower tells apart: a linear probe on its features of cards, tested on combinations that training never shows.

    python -m videoxl.synth.probe MODEL

A tower that infers the shape from the colour is good on trained combinations and bad on held-out ones.

Shape letters: F pictures, P patches, C channels of the tower.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from videoxl.media.pixels import VideoXLImageProcessor
from videoxl.model.loading import load_pretrained_model
from videoxl.model.modeling import LlavaQwenForCausalLM
from videoxl.synth.cards import COLOUR_NAMES, NUM_TESTED, Card, all_cards, overlay_card, show_card
from videoxl.synth.drawing import draw
from videoxl.synth.glyphs import SHAPES
from videoxl.synth.scenes import families, make_clip
from videoxl.utils.cli_errors import one_line_errors

RIDGE = 1e-2
_PROBE_STREAM = 1 << 21  # keeps its pictures apart from those of training and tests


@torch.no_grad()
def features_of_cards(
    model: LlavaQwenForCausalLM, processor: VideoXLImageProcessor, cards: Sequence[Card], number: int, seed: int
) -> tuple[Tensor, list[Card]]:
    """Mean and maximum over patches, [F, 2 C], of cards on the whole screen and over scenes; and what they show."""
    rng = np.random.default_rng([_PROBE_STREAM, seed])
    tower, found, shown = model.model.vision_tower, [], []
    for start in range(0, number, 32):
        numbers = []
        for place in range(start, min(start + 32, number)):
            card = cards[rng.integers(len(cards))]
            scene = make_clip(rng, families(True)[rng.integers(len(families(True)))], 1)
            numbers.append(overlay_card(rng, scene, card) if place % 2 else show_card(rng, card, 1))
            shown.append(card)
        pictures = draw(torch.from_numpy(np.concatenate(numbers)), processor.side, tower.device)
        patches = tower(processor.normalize(pictures, tower.dtype)).float()
        found.append(torch.cat([patches.mean(dim=1), patches.amax(dim=1)], dim=1).cpu())
    return torch.cat(found), shown


def fit(features: Tensor, classes: Tensor, number: int) -> Tensor:
    """Weights [2 C + 1, number] of a ridge regression on one-hot classes [F]."""
    inputs = torch.cat([features, torch.ones(len(features), 1)], dim=1).double()
    wanted = torch.nn.functional.one_hot(classes, number).double()
    square = inputs.T @ inputs
    square += RIDGE * square.diagonal().mean() * torch.eye(len(square), dtype=torch.float64)
    return torch.linalg.solve(square, inputs.T @ wanted)


def probe(
    model: LlavaQwenForCausalLM, processor: VideoXLImageProcessor, pictures: int = 1200, tested: int = 400
) -> dict:
    """Accuracy for colours and shapes on new pictures, of trained and of held-out combinations of the tested names."""
    names = {"colour": COLOUR_NAMES[:NUM_TESTED], "shape": SHAPES[:NUM_TESTED]}
    trained = [c for c in all_cards("training") if c.colour in names["colour"] and c.shape in names["shape"]]
    sets = {"trained": trained, "held_out": all_cards("test")}
    features, shown = features_of_cards(model, processor, trained, pictures, seed=0)
    middle, spread = features.mean(dim=0), features.std(dim=0) + 1e-6
    weights = {
        kind: fit((features - middle) / spread, _classes(shown, kind, known), len(known))
        for kind, known in names.items()
    }
    report = {}
    for seed, (name, cards) in enumerate(sets.items(), start=1):
        features, shown = features_of_cards(model, processor, cards, tested, seed)
        inputs = torch.cat([(features - middle) / spread, torch.ones(len(features), 1)], dim=1).double()
        for kind, known in names.items():
            right = (inputs @ weights[kind]).argmax(dim=1) == _classes(shown, kind, known)
            report[f"{name}_{kind}"] = round(right.float().mean().item(), 3)
    return report


def _classes(cards: Sequence[Card], kind: str, names: Sequence[str]) -> Tensor:
    return torch.tensor([names.index(getattr(card, kind)) for card in cards])


@one_line_errors
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m videoxl.synth.probe", description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path, help="checkpoint folder")
    parser.add_argument("--pictures", type=int, default=1200, help="to fit the probe on")
    parser.add_argument("--device", default="auto")
    given = parser.parse_args(arguments)
    _, model, processor, _ = load_pretrained_model(given.model, device_map=given.device)
    print(json.dumps(probe(model, processor, given.pictures)))


if __name__ == "__main__":
    sys.exit(main())
