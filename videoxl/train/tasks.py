"""Training tasks other than conversations, found by name (`--train_task`): a model with heads that are not saved."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import nn

from videoxl.model.modeling import LlavaQwenForCausalLM
from videoxl.utils.registry import Registry

CONVERSATION = "conversation"


class TaskModel(nn.Module):
    """A model with the heads of a task.

    Attributes:
        model: the whole Video-XL model; only this is saved.
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
        takes_records: whether records can hold its labels (`classes`); if False, only a streamed source can.
    """

    takes_records: ClassVar[bool] = True

    @abstractmethod
    def wrap(self, model: LlavaQwenForCausalLM, class_names: dict[str, list[str]], tokenizer) -> TaskModel:
        """Wrap the model with the task's heads, and set which parameters are trainable."""


TASKS: Registry[type[TrainTask]] = Registry("train task", "videoxl.train_tasks")


def task_names() -> list[str]:
    """Valid values of `--train_task`."""
    return [CONVERSATION, *TASKS.names()]
