"""Trains tower and projector so that visual tokens resemble the decoder's embeddings of the words for their content.

A decoder that learnt to answer from text attends to words; visual tokens that resemble none get neither attention nor
gradient, and the joint task does not improve. Here each visual token is compared with the embeddings of class names;
the best match of all tokens of a picture has to name its class. The decoder itself does not run.

Shape letters: F pictures, t visual tokens of one, H hidden size, n classes of an attribute.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from videoxl.model.modeling import LlavaQwenForCausalLM
from videoxl.model.pooling import pool_patches
from videoxl.synth.class_tasks import ClassTask
from videoxl.train.tasks import TASKS, TaskModel, TrainTask

NONE = "none"


class VisualWords(ClassTask):
    """The model's tower and projector, compared with its own word embeddings.

    The class `none` means that a picture lacks the attribute; its logit is a learnt threshold.
    """

    def __init__(self, model: LlavaQwenForCausalLM, class_names: dict[str, list[str]], tokenizer):
        super().__init__(model, [*model.model.vision_tower.modules_run(), model.model.mm_projector])
        self.sharpness = nn.Parameter(torch.zeros(()))
        self.threshold = nn.Parameter(torch.ones(()))
        self.class_names = list(class_names.values())
        embed = model.model.embed_tokens.weight.detach().float()
        for number, classes in enumerate(self.class_names):
            words = [embed[tokenizer(" " + name).input_ids].mean(dim=0) for name in classes]
            self.register_buffer(f"words{number}", torch.stack(words), persistent=False)

    def logits(self, pixels: Tensor) -> list[Tensor]:
        """Logits [F, n] of each attribute: the best match of all visual tokens with each word."""
        inner = self.model.model
        projected = inner.mm_projector(inner.vision_tower(pixels))
        tokens = pool_patches(projected, self.config.mm_spatial_pool_stride, self.config.mm_spatial_pool_mode)
        tokens = F.rms_norm(tokens.float(), tokens.shape[-1:])
        scale = self.sharpness.exp() / math.sqrt(tokens.shape[-1])
        return [self._match(tokens, scale, number) for number in range(len(self.class_names))]

    def _match(self, tokens: Tensor, scale: Tensor, number: int) -> Tensor:
        words = F.rms_norm(getattr(self, f"words{number}"), tokens.shape[-1:])
        logits = (tokens @ words.T).amax(dim=1).float() * scale
        if NONE in self.class_names[number]:
            place = self.class_names[number].index(NONE)
            none = self.threshold.to(logits.dtype).expand(len(logits), 1)
            logits = torch.cat([logits[:, :place], none, logits[:, place + 1 :]], dim=1)
        return logits


@TASKS.register("vision_words")
class VisionWords(TrainTask):
    """Tower and projector, towards the decoder's words for the classes."""

    def wrap(self, model, class_names, tokenizer) -> TaskModel:
        return VisualWords(model, class_names, tokenizer)
