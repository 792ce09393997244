"""Training tasks beside conversations: a model under heads that are thrown away, found by name (`--train_task`)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import nn

from videoxl.model.modeling import LlavaQwenForCausalLM
from videoxl.utils.registry import Registry

CONVERSATION = "conversation"


class TaskModel(nn.Module):
    """A model under a task's heads.

    Attributes:
        model: the whole Video-XL, which is what gets saved.
    """

    accepts_loss_kwargs = True

    def __init__(self, model: LlavaQwenForCausalLM):
        super().__init__()
        self.model = model
        self.config = model.config

    def get_base_model(self) -> LlavaQwenForCausalLM:
        return self.model


class TrainTask(ABC):
    """A task on class labels.

    Attributes:
        takes_records: whether records can hold what it learns from (`classes`), or only a streamed source.
    """

    takes_records: ClassVar[bool] = True

    @abstractmethod
    def wrap(self, model: LlavaQwenForCausalLM, class_names: dict[str, list[str]], tokenizer) -> TaskModel:
        """The model that the trainer trains; it sets what learns."""


TASKS: Registry[type[TrainTask]] = Registry("train task", "videoxl.train_tasks")


def task_names() -> list[str]:
    """What `--train_task` takes."""
    return [CONVERSATION, *TASKS.names()]
