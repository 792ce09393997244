"""Training the vision tower on class labels, with heads that are thrown away (for models made from nothing).

A tower that can already tell colours and shapes lets the joint task start at once.

Shape letters: F pictures, P patches, C channels of the tower.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.utils import ModelOutput

from videoxl.model.modeling import LlavaQwenForCausalLM


@dataclass
class ClassOutput(ModelOutput):
    """`loss`, and `correct`: right answers of each attribute, [attributes]."""

    loss: Tensor | None = None
    correct: Tensor | None = None


class VisionClassifier(nn.Module):
    """The model's tower under one linear head for each attribute; the rest of the model stands still.

    Attributes:
        model: the whole model, which is what gets saved.
    """

    accepts_loss_kwargs = True

    def __init__(self, model: LlavaQwenForCausalLM, class_names: dict[str, list[str]]):
        super().__init__()
        self.model = model
        self.config = model.config
        width = model.model.vision_tower.hidden_size
        self.heads = nn.ModuleDict({name: nn.Linear(width, len(classes)) for name, classes in class_names.items()})
        model.requires_grad_(False)
        tower = model.model.vision_tower
        for layer in _run_modules(tower):
            layer.requires_grad_(True)

    def get_base_model(self) -> LlavaQwenForCausalLM:
        return self.model

    def forward(
        self,
        images: Sequence[Tensor],
        classes: Tensor,
        modalities: Sequence[str] | None = None,
        num_items_in_batch: Tensor | int | None = None,
    ) -> ClassOutput:
        """Cross entropy of mean patch features against `classes` [F, attributes]; `images` are single views."""
        features = self.model.model.vision_tower(torch.cat([image[:1] for image in images])).mean(dim=1)
        features = features.to(next(iter(self.heads.values())).weight.dtype)
        loss = features.new_zeros((), dtype=torch.float32)
        correct = []
        for (_, head), wanted in zip(self.heads.items(), classes.T):
            logits = head(features).float()
            loss = loss + F.cross_entropy(logits, wanted, reduction="sum")
            correct.append((logits.argmax(dim=1) == wanted).sum())
        return ClassOutput(
            loss / (classes.numel() if num_items_in_batch is None else num_items_in_batch), torch.stack(correct)
        )


def _run_modules(tower: nn.Module) -> list[nn.Module]:
    """Modules that a pass through the tower reaches."""
    if not hasattr(tower, "num_layers_run"):
        return [tower]
    clip = tower.vision_tower.vision_model
    return [clip.embeddings, clip.pre_layrnorm, *clip.encoder.layers[: tower.num_layers_run]]
