"""Training a tower on classes of pictures and of their patches."""

import pytest
import torch
import torch.nn.functional as F
from conftest import TINY
from training_data import fit

from videoxl.errors import ArgumentError
from videoxl.model.loading import load_pretrained_model
from videoxl.synth.class_tasks import UNKNOWN, PatchClassifier, classes_of_pictures, never_in_pictures
from videoxl.train.cli import leave_cores_to_workers, main, train
from videoxl.train.config import TrainingArguments
from videoxl.train.data.collator import number_of_targets

CLASSES = {"colour": ["none", "red", "blue"], "shape": ["none", "disc"]}
PATCHES = 576


@pytest.fixture
def task():
    torch.manual_seed(0)
    return PatchClassifier(load_pretrained_model(TINY, device_map="cpu")[1], CLASSES)


def labels(number):
    classes = torch.zeros(number, 2, PATCHES, dtype=torch.int64)
    classes[0, 0, 100:200] = 1
    classes[0, 1, 100:150] = UNKNOWN
    return classes


def test_a_picture_has_the_class_of_its_patches_or_none_that_is_known():
    classes = torch.zeros(5, 1, 4, dtype=torch.int64)
    classes[1, 0, 2] = 3
    classes[2, 0, 1:3] = 2
    classes[3, 0, 0], classes[3, 0, 1] = 1, 2  # two of them
    classes[4, 0, 0], classes[4, 0, 1] = UNKNOWN, 1
    assert classes_of_pictures(classes)[:, 0].tolist() == [0, 3, 2, UNKNOWN, UNKNOWN]


def test_the_loss_is_that_of_patches_and_a_picture_weighs_as_much_as_all_of_its_patches(task):
    pictures, classes = [torch.randn(1, 3, 336, 336) for _ in range(2)], labels(2)
    with torch.no_grad():
        output = task(pictures, classes)
        patches = task.model.model.vision_tower(torch.cat(pictures)).float()
        pooled = torch.cat([patches.mean(dim=1), patches.amax(dim=1)], dim=1)
        wanted = 0.0
        for number, name in enumerate(CLASSES):
            each = task.patch_heads[name](patches).flatten(0, 1)
            wanted += F.cross_entropy(each, classes[:, number].flatten(), ignore_index=UNKNOWN, reduction="sum")
            whole = F.cross_entropy(
                task.picture_heads[name](pooled), classes_of_pictures(classes)[:, number],
                ignore_index=UNKNOWN, reduction="sum",
            )  # fmt: skip
            wanted += PATCHES * whole
    known = 2 * 2 * PATCHES - 50
    assert number_of_targets({"classes": classes}) == known
    assert float(output.loss) == pytest.approx(float(wanted) / known, rel=1e-5)
    assert float(task(pictures, classes, num_items_in_batch=2 * known).loss.detach()) == pytest.approx(
        float(output.loss) / 2, rel=1e-5
    )


def test_classes_that_are_left_out_take_no_part(task):
    """Neither in a patch nor, where any patch leaves them out, in the picture."""
    pictures, classes = [torch.randn(1, 3, 336, 336)], torch.zeros(1, 2, PATCHES, dtype=torch.int64)
    never = torch.zeros_like(classes)
    never[0, 0, :300] = 1 << 2
    with torch.no_grad():
        task.patch_heads["colour"].bias[2] = task.picture_heads["colour"].bias[2] = 50.0
        plain, held = task(pictures, classes), task(pictures, classes, never)
        # 300 patches and the picture are free of the class; 276 patches are not
        assert float(plain.loss) == pytest.approx(50 / 2 * 2, rel=0.2)
        assert float(held.loss) == pytest.approx(50 / 2 * 276 / PATCHES, rel=0.2)
    assert never_in_pictures(torch.tensor([[[1, 4, 4], [0, 0, 2]]])).tolist() == [[5, 2]]
    task(pictures, classes, never).loss.backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in task.parameters() if parameter.grad is not None)


def test_it_learns_where_something_is(task):
    """The tower learns, and nothing else that is kept."""
    pictures = [torch.randn(1, 3, 336, 336) for _ in range(2)]
    classes = labels(2)
    learning = [name for name, parameter in task.named_parameters() if parameter.requires_grad]
    assert all("vision_tower" in name or "heads" in name for name in learning)
    first, output = fit(task, pictures, classes, 25, 3e-3)
    assert float(output.loss.detach()) < 0.3 * first
    assert output.correct[0] > 0.9 * 2 * PATCHES


def test_records_have_no_classes_of_patches(data, tmp_path, capsys):
    flags = ["--model_name_or_path", str(TINY), "--data_path", str(data / "none.json"), "--output_dir", str(tmp_path)]
    with pytest.raises(ArgumentError, match="vision_patches needs classes of every patch"):
        train([*flags, "--train_task", "vision_patches", "--use_cpu", "True"])
    assert main([*flags, "--train_task", "vision_pixels", "--use_cpu", "True"])
    assert "vision_patches or vision_words" in capsys.readouterr().err


@pytest.mark.parametrize(("workers", "kept", "threads"), [(12, None, 1), (0, None, 2), (12, "2", 2)])
def test_beside_loaders_and_a_gpu_one_thread_is_used(tmp_path, monkeypatch, workers, kept, threads):
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none", dataloader_num_workers=workers)
    monkeypatch.setattr(TrainingArguments, "device", torch.device("cuda"))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if kept:
        monkeypatch.setenv("OMP_NUM_THREADS", kept)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        leave_cores_to_workers(args)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
