"""Trains the vision tower on class labels, with heads that are not saved (for models trained from scratch).

If the tower already distinguishes colours and shapes, joint training improves from the first steps.

Shape letters: F pictures, P patches, C channels of the tower.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.utils import ModelOutput

from videoxl.constants import IGNORE_INDEX
from videoxl.model.modeling import LlavaQwenForCausalLM
from videoxl.train.tasks import TASKS, TaskModel, TrainTask

UNKNOWN = IGNORE_INDEX
"""Instead of a class number: no loss for this attribute of this picture or patch."""
MOST_CLASSES = 63  # per attribute if some are excluded: the bits of an int64 without its sign


@dataclass
class ClassOutput(ModelOutput):
    """`loss`, and `correct`: right answers of each attribute, [attributes]."""

    loss: Tensor | None = None
    correct: Tensor | None = None


class ClassTask(TaskModel, ABC):
    """Trains modules of the model to classify pictures or their patches; subclasses compute the logits."""

    def __init__(self, model: LlavaQwenForCausalLM, learning: Sequence[nn.Module]):
        super().__init__(model)
        model.requires_grad_(False)
        for module in learning:
            module.requires_grad_(True)

    @abstractmethod
    def logits(self, pixels: Tensor) -> list[Tensor]:
        """pixels [F, 3, S, S] -> logits [F, n] of each attribute."""

    def cost(self, pixels: Tensor, classes: Tensor, never: Tensor | None) -> tuple[Tensor, Tensor]:
        """Summed cross entropy against `classes` [F, attributes], and right answers of each attribute."""
        return sum_up(self.logits(pixels), classes, never)

    def forward(
        self,
        images: Sequence[Tensor],
        classes: Tensor,
        never: Tensor | None = None,
        modalities: Sequence[str] | None = None,
        num_items_in_batch: Tensor | int | None = None,
    ) -> ClassOutput:
        """Mean cross entropy over the `classes` that are not `UNKNOWN`; of each of `images` the first view is used.

        `never`, int64 of the shape of `classes`: where bit n is set, the loss excludes class n. Otherwise the model
        would learn that what the data never show cannot exist.
        """
        loss, correct = self.cost(torch.cat([image[:1] for image in images]), classes, never)
        known = (classes != UNKNOWN).sum() if num_items_in_batch is None else num_items_in_batch
        return ClassOutput(loss / known, correct)


def sum_up(logits: Sequence[Tensor], classes: Tensor, never: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Cross entropy, and right answers of each attribute, summed over pictures and patches.

    Args:
        logits: [F, n] or [F, P, n] of each attribute. classes: [F, attributes] or [F, attributes, P]. never: in the
            shape of classes, bits of the excluded classes.
    """
    loss, correct = 0.0, []
    for number, (given, wanted) in enumerate(zip(logits, classes.unbind(dim=1))):
        given, wanted = given.flatten(end_dim=-2).float(), wanted.flatten()
        if never is not None:
            given = given.masked_fill(_spread(never[:, number].flatten(), given.shape[-1]), float("-inf"))
        loss = loss + F.cross_entropy(given, wanted, reduction="sum", ignore_index=UNKNOWN)
        correct.append((given.argmax(dim=1) == wanted).sum())
    return loss, torch.stack(correct)


class VisionClassifier(ClassTask):
    """The model's tower with one linear head per attribute."""

    def __init__(self, model: LlavaQwenForCausalLM, class_names: dict[str, list[str]]):
        tower = model.model.vision_tower
        super().__init__(model, tower.modules_run())
        self.heads = _heads(2 * tower.hidden_size, class_names)

    def logits(self, pixels: Tensor) -> list[Tensor]:
        return _read(self.heads, _pooled(self.model.model.vision_tower(pixels)))


class PatchClassifier(ClassTask):
    """The same with classes of every patch, and heads for patches and for whole pictures.

    Class 0 means that a patch lacks the attribute. A picture has the class of its patches; if they have several
    classes or an unknown one, the picture's class is `UNKNOWN`.
    """

    def __init__(self, model: LlavaQwenForCausalLM, class_names: dict[str, list[str]]):
        tower = model.model.vision_tower
        super().__init__(model, tower.modules_run())
        self.patch_heads = _heads(tower.hidden_size, class_names)
        self.picture_heads = _heads(2 * tower.hidden_size, class_names)

    def logits(self, pixels: Tensor) -> list[Tensor]:
        """Of patches [F, P, n], then of pictures [F, n]."""
        patches = self.model.model.vision_tower(pixels)
        return [*_read(self.patch_heads, patches), *_read(self.picture_heads, _pooled(patches))]

    def cost(self, pixels: Tensor, classes: Tensor, never: Tensor | None) -> tuple[Tensor, Tensor]:
        """Against `classes` [F, attributes, P]; a picture weighs as much as its patches together."""
        logits, attributes = self.logits(pixels), classes.shape[1]
        loss, correct = sum_up(logits[:attributes], classes, never)
        whole = None if never is None else never_in_pictures(never)
        of_pictures, _ = sum_up(logits[attributes:], classes_of_pictures(classes), whole)
        return loss + classes.shape[2] * of_pictures, correct


def _spread(bits: Tensor, number: int) -> Tensor:
    """[...] -> bool [..., number]: whether each bit is set."""
    return (bits.unsqueeze(-1) >> torch.arange(number, device=bits.device) & 1).bool()


def never_in_pictures(never: Tensor) -> Tensor:
    """[F, attributes, P] -> [F, attributes]: classes that any patch excludes."""
    weights = 1 << torch.arange(MOST_CLASSES, device=never.device)
    return (_spread(never, MOST_CLASSES).any(dim=-2) * weights).sum(dim=-1)


def classes_of_pictures(classes: Tensor) -> Tensor:
    """[F, attributes, P] -> [F, attributes]."""
    largest = classes.amax(dim=-1)
    has_several = ((classes > 0) & (classes != largest.unsqueeze(-1))).any(dim=-1)
    is_unknown = has_several | (classes == UNKNOWN).any(dim=-1)
    return largest.masked_fill(is_unknown, UNKNOWN)


def _heads(width: int, class_names: dict[str, list[str]]) -> nn.ModuleDict:
    return nn.ModuleDict({name: nn.Linear(width, len(classes)) for name, classes in class_names.items()})


def _read(heads: nn.ModuleDict, features: Tensor) -> list[Tensor]:
    features = features.to(next(iter(heads.values())).weight.dtype)
    return [head(features) for head in heads.values()]


def _pooled(patches: Tensor) -> Tensor:
    """Mean and maximum over patches, [F, 2 C]: the mean alone would lose what only few patches show."""
    return torch.cat([patches.mean(dim=1), patches.amax(dim=1)], dim=1)


@TASKS.register("vision_classes")
class VisionClasses(TrainTask):
    """The tower alone, on class labels of pictures."""

    def wrap(self, model, class_names, tokenizer) -> TaskModel:
        return VisionClassifier(model, class_names)


@TASKS.register("vision_patches")
class VisionPatches(TrainTask):
    """The tower alone, on class labels of every patch."""

    takes_records = False

    def wrap(self, model, class_names, tokenizer) -> TaskModel:
        return PatchClassifier(model, class_names)
