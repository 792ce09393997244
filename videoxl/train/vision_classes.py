"""Training the vision tower on class labels, with heads that are thrown away (for models made from nothing).

A tower that can already tell colours and shapes lets the joint task start at once.

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

UNKNOWN = IGNORE_INDEX
"""In place of a class number: nothing is learnt about that attribute of that picture."""


@dataclass
class ClassOutput(ModelOutput):
    """`loss`, and `correct`: right answers of each attribute, [attributes]."""

    loss: Tensor | None = None
    correct: Tensor | None = None


class ClassTask(nn.Module, ABC):
    """A part of the model that learns to tell classes of pictures; subclasses give the logits.

    Attributes:
        model: the whole model, which is what gets saved.
    """

    accepts_loss_kwargs = True

    def __init__(self, model: LlavaQwenForCausalLM, learning: Sequence[nn.Module]):
        super().__init__()
        self.model = model
        self.config = model.config
        model.requires_grad_(False)
        for module in learning:
            module.requires_grad_(True)

    def get_base_model(self) -> LlavaQwenForCausalLM:
        return self.model

    @abstractmethod
    def logits(self, pixels: Tensor) -> list[Tensor]:
        """pixels [F, 3, S, S] -> logits [F, n] of each attribute."""

    def forward(
        self,
        images: Sequence[Tensor],
        classes: Tensor,
        modalities: Sequence[str] | None = None,
        num_items_in_batch: Tensor | int | None = None,
    ) -> ClassOutput:
        """Cross entropy against `classes` [F, attributes], some of them `UNKNOWN`; `images` are single views."""
        loss, correct = 0.0, []
        for logits, wanted in zip(self.logits(torch.cat([image[:1] for image in images])), classes.T):
            loss = loss + F.cross_entropy(logits.float(), wanted, reduction="sum", ignore_index=UNKNOWN)
            correct.append((logits.argmax(dim=1) == wanted).sum())
        known = (classes != UNKNOWN).sum() if num_items_in_batch is None else num_items_in_batch
        return ClassOutput(loss / known, torch.stack(correct))


class VisionClassifier(ClassTask):
    """The model's tower under one linear head for each attribute."""

    def __init__(self, model: LlavaQwenForCausalLM, class_names: dict[str, list[str]]):
        tower = model.model.vision_tower
        super().__init__(model, run_modules(tower))
        self.heads = nn.ModuleDict(
            {name: nn.Linear(2 * tower.hidden_size, len(classes)) for name, classes in class_names.items()}
        )

    def logits(self, pixels: Tensor) -> list[Tensor]:
        """Patch features pooled by mean and by maximum: what stands in few patches is lost in the mean of all."""
        patches = self.model.model.vision_tower(pixels)
        features = torch.cat([patches.mean(dim=1), patches.amax(dim=1)], dim=1)
        features = features.to(next(iter(self.heads.values())).weight.dtype)
        return [head(features) for head in self.heads.values()]


def run_modules(tower: nn.Module) -> list[nn.Module]:
    """Modules that a pass through the tower reaches."""
    if not hasattr(tower, "num_layers_run"):
        return [tower]
    clip = tower.vision_tower.vision_model
    return [clip.embeddings, clip.pre_layrnorm, *clip.encoder.layers[: tower.num_layers_run]]
