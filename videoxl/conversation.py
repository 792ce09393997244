"""Prompt templates of the published checkpoints, and the token ids of one question about one video."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

from videoxl.constants import IMAGE_TOKEN_INDEX

SYSTEM_MESSAGE = "You are a helpful assistant."
SELECT_MESSAGE = (
    "Carefully watch this video and pay attention to every detail. Based on your observations, select the best option "
    "that accurately addresses the question."
)
"""System message behind the published VNBench scores (`eval/eval_vnbench.py` of the published system)."""


@dataclass
class Conversation:
    """A dialogue and how it is written down.

    Attributes:
        system: text of the system turn (chat) or what stands before everything (plain).
        roles: names of the two sides as they are written.
        messages: (role, text) pairs; None as text leaves the turn open for the model.
        sep: what ends a turn.
        style: `chatml` (Qwen2's chat format) or `plain` (placeholder and caption, for pretraining).
    """

    system: str
    roles: tuple[str, str]
    sep: str
    style: str
    version: str
    messages: list[tuple[str, str | None]] = field(default_factory=list)

    def append_message(self, role: str, message: str | None) -> None:
        self.messages.append((role, message))

    def copy(self) -> Conversation:
        return copy.deepcopy(self)

    def get_prompt(self) -> str:
        """The dialogue as one string."""
        if self.style == "plain":
            return self.system + "".join(text + self.sep for _, text in self.messages if text)
        turns = [self.system + self.sep + "\n"] if self.system else []
        for role, text in self.messages:
            turns.append(f"{role}\n{text}{self.sep}\n" if text else f"{role}\n")
        return "".join(turns)


conv_qwen = Conversation(
    system=f"<|im_start|>system\n{SYSTEM_MESSAGE}",
    roles=("<|im_start|>user", "<|im_start|>assistant"),
    sep="<|im_end|>",
    style="chatml",
    version="qwen",
)
conv_plain = Conversation(system="", roles=("", ""), sep="\n", style="plain", version="plain")

conv_templates = {"default": conv_qwen, "qwen_1_5": conv_qwen, "qwen_2": conv_qwen, "plain": conv_plain}
default_conversation = conv_qwen


def video_prompt_ids(tokenizer, question: str, system: str = SYSTEM_MESSAGE) -> tuple[list[int], list[int]]:
    """Ids of the text before and behind the video of a one-question prompt in Qwen2's chat format.

    The question is tokenised as text, so that a literal `<image>` in it stays text.
    """
    before = f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n"
    behind = f"\n{question}<|im_end|>\n<|im_start|>assistant\n"
    return tokenizer(before).input_ids, tokenizer(behind).input_ids


def join_prompt_ids(before: list[int], behind: list[int]) -> list[int]:
    """One region's prompt: text, placeholder, text."""
    return [*before, IMAGE_TOKEN_INDEX, *behind]
