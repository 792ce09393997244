"""The task that pulls visual tokens towards words."""

import pytest
import torch
import torch.nn.functional as F
from conftest import TINY
from training_data import fit
from transformers import AutoTokenizer

from videoxl.constants import IGNORE_INDEX
from videoxl.model.loading import load_pretrained_model
from videoxl.synth.class_tasks import UNKNOWN
from videoxl.synth.word_task import VisualWords
from videoxl.train.data.collator import number_of_targets

CLASSES = {"colour": ["blue", "none", "red"], "shape": ["disc", "square"]}


@pytest.fixture
def task():
    torch.manual_seed(0)
    model = load_pretrained_model(TINY, device_map="cpu")[1]
    return VisualWords(model, CLASSES, AutoTokenizer.from_pretrained(TINY))


def test_only_tower_projector_and_its_own_two_numbers_learn(task):
    learning = {name for name, parameter in task.named_parameters() if parameter.requires_grad}
    assert {"sharpness", "threshold"} <= learning
    assert all("vision_tower" in name or "mm_projector" in name for name in learning - {"sharpness", "threshold"})
    assert any("mm_projector" in name for name in learning)


def test_it_learns_which_picture_is_which(task):
    pictures = [torch.randn(1, 3, 336, 336) for _ in range(3)]
    wanted = torch.tensor([[0, 0], [1, 1], [2, 1]])
    first, output = fit(task, pictures, wanted, 30, 2e-3)
    assert float(output.loss.detach()) < 0.3 * first
    assert output.correct.tolist() == [3, 3]


def test_the_class_none_is_a_threshold_and_not_a_word(task):
    pictures, wanted = [torch.randn(1, 3, 336, 336)], torch.tensor([[1, 0]])
    with torch.no_grad():
        task.threshold.fill_(1e4)
        assert task(pictures, wanted).correct.tolist()[0] == 1
        task.threshold.fill_(-1e4)
        assert task(pictures, wanted).correct.tolist()[0] == 0


def test_nothing_is_learnt_or_counted_where_a_class_is_unknown(task):
    pictures = [torch.randn(1, 3, 336, 336) for _ in range(2)]
    known = torch.tensor([[0, 0], [2, 1]])
    partly = torch.tensor([[UNKNOWN, 0], [2, 1]])
    losses = [F.cross_entropy(logits.float(), wanted, reduction="none") for logits, wanted in
              zip(task.logits(torch.cat(pictures)), known.T)]  # fmt: skip
    assert float(task(pictures, known).loss.detach()) == pytest.approx(
        sum(float(each.detach().sum()) for each in losses) / 4, rel=1e-5
    )
    without = (float(losses[0][1].detach()) + float(losses[1].detach().sum())) / 3
    assert float(task(pictures, partly).loss.detach()) == pytest.approx(without, rel=1e-5)
    assert int(task(pictures, partly).correct[0]) <= 1
    assert number_of_targets({"classes": partly}) == 3
    assert (
        number_of_targets({"labels": torch.tensor([[5, 6, IGNORE_INDEX, 7]])}) == 2
    )  # the first one has no token before
