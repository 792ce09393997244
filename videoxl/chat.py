"""The prompt templates of the published checkpoints, and their texts as token ids."""

from __future__ import annotations

import copy
import re
import weakref
from dataclasses import dataclass, field

import torch
from torch import Tensor

from videoxl.constants import DEFAULT_IMAGE_TOKEN, IMAGE_TOKEN_INDEX
from videoxl.errors import ConfigError, PromptError

SYSTEM_MESSAGE = "You are a helpful assistant."
SELECT_MESSAGE = (
    "Carefully watch this video and pay attention to every detail. Based on your observations, select the best option "
    "that accurately addresses the question."
)
"""System message used for the published VNBench scores (`eval/eval_vnbench.py` of the published system)."""


@dataclass
class Conversation:
    """A dialogue and its text format.

    Attributes:
        system: text of the system turn (chat), or text before all turns (plain).
        roles: names of the user and the assistant, as they appear in the prompt.
        messages: (role, text) pairs; a text of None leaves the turn open for the model.
        sep: text that ends a turn.
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


_MARK = "\0visual\0"  # does not occur in a user's text
_USER, _END = "\x02", "\x03"  # around a user's text that may look like control tokens
_MARKS = re.compile(f"[{_USER}{_END}\0]")


@dataclass(frozen=True)
class PromptText:
    """The text of one prompt, split at its visual inputs.

    Attributes:
        texts: the text before, between and after the visual inputs; one more than there are visual inputs.
    """

    texts: tuple[str, ...]

    @property
    def prefix(self) -> str:
        """Text before the first visual input; a video memory has read it."""
        return self.texts[0]

    @property
    def suffix(self) -> str:
        """Text after the last visual input."""
        return self.texts[-1]

    @property
    def num_visuals(self) -> int:
        return len(self.texts) - 1


def users_text(text: str) -> str:
    """A user's text to be put into a template: whatever it holds, none of it becomes a control token (`text_ids`)."""
    text = _MARKS.sub("", text)
    return f"{_USER}{text}{_END}" if "<|" in text else text  # as all control tokens of this family begin


def question_prompt(
    question: str,
    num_visuals: int = 1,
    system: str = SYSTEM_MESSAGE,
    separator: str = "\n",
    answer: str = "",
) -> PromptText:
    """One question about visual inputs in Qwen2's chat format. The inputs come first.

    What stands in `question`, `system` and `answer` is text, also `<image>` and `<|im_end|>`.

    Args:
        separator: text between the visual inputs and the question.
        answer: beginning of the answer, which the model continues.
    """
    conversation = conv_qwen.copy()
    conversation.system = f"<|im_start|>system\n{users_text(system)}"
    visuals = " ".join([_MARK] * num_visuals) + separator if num_visuals else ""
    prompt = _one_turn(conversation, visuals + users_text(question))
    return PromptText((*prompt.texts[:-1], prompt.suffix + users_text(answer)))


def check_template(name: str) -> None:
    """Raise `ConfigError` for an unknown conversation template."""
    if name not in conv_templates:
        raise ConfigError(f"conv_template {name!r} is not known; use one of {', '.join(conv_templates)}")


def template_prompt(template: str, context: str, num_visuals: int) -> PromptText:
    """A one-turn prompt in a published template.

    As published, if the context has exactly one `<image>` per visual input, each stands for one of them. Otherwise the
    visual inputs come first, and every `<image>` in the context is plain text. Control tokens in it are text always.
    """
    context = _MARKS.sub("", context)
    if num_visuals and context.count(DEFAULT_IMAGE_TOKEN) == num_visuals:
        context = _MARK.join(map(users_text, context.split(DEFAULT_IMAGE_TOKEN)))
    elif num_visuals:
        context = " ".join([_MARK] * num_visuals) + "\n" + users_text(context)
    else:
        context = users_text(context)
    return _one_turn(conv_templates[template].copy(), context)


def _one_turn(conversation: Conversation, text: str) -> PromptText:
    """A conversation of one question, split at the marks of the visual inputs."""
    conversation.append_message(conversation.roles[0], text)
    conversation.append_message(conversation.roles[1], None)
    return PromptText(tuple(conversation.get_prompt().split(_MARK)))


def text_ids(tokenizer, text: str) -> list[int]:
    """Token ids of a text of a `PromptText`; `<image>` in it is plain text, as are all parts that are `users_text`."""
    check_text(text)
    if _USER not in text:
        return tokenizer(text).input_ids if text else []
    plain, users = _without_marks(text)
    ids: list[int] = []
    done = 0
    for match in _control_pattern(tokenizer).finditer(plain):
        if any(match.start() < end and start < match.end() for start, end in users):
            continue
        ids += [*plain_ids(tokenizer, plain[done : match.start()]), tokenizer.convert_tokens_to_ids(match.group())]
        done = match.end()
    return ids + plain_ids(tokenizer, plain[done:])


def check_text(text: str) -> None:
    """Raise `PromptError` for half of a surrogate pair, which JSON can hold and no tokenizer reads."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PromptError(f"a text holds {text[error.start]!r}, half of a character; remove it") from error


def plain_ids(tokenizer, text: str) -> list[int]:
    """Token ids of a text in which nothing is a control token.

    What would be one is cut after its first character. (The tokenizer's own switch for this is one for all threads.)
    """
    check_text(text)
    pieces, done = [], 0
    for match in _control_pattern(tokenizer).finditer(text):
        pieces.append(text[done : match.start() + 1])
        done = match.start() + 1
    pieces.append(text[done:])
    if len(pieces) == 1:
        return tokenizer(text).input_ids if text else []
    return [token for piece in pieces if piece for token in tokenizer(piece, add_special_tokens=False).input_ids]


_patterns: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()  # tokenizer -> (number of tokens, pattern)


def _control_pattern(tokenizer) -> re.Pattern:
    """Finds the tokens that were added to the vocabulary, longest first, so that none hides behind a shorter one."""
    number = len(tokenizer) if hasattr(tokenizer, "added_tokens_decoder") else 0
    known = _patterns.get(tokenizer)
    if known is None or known[0] != number:
        added = [token.content for token in tokenizer.added_tokens_decoder.values()] if number else []
        literals = sorted((each for each in added if len(each) > 1), key=len, reverse=True)
        known = _patterns[tokenizer] = number, re.compile("|".join(map(re.escape, literals)) or r"(?!)")
    return known[1]


def _without_marks(text: str) -> tuple[str, list[tuple[int, int]]]:
    """The text, and where in it users' texts begin and end."""
    plain, users, start = "", [], 0
    for piece in re.split(f"([{_USER}{_END}])", text):
        if piece == _USER:
            start = len(plain)
        elif piece == _END:
            users.append((start, len(plain)))
        else:
            plain += piece
    return plain, users


def video_prompt_ids(tokenizer, question: str, system: str = SYSTEM_MESSAGE) -> tuple[list[int], list[int]]:
    """Ids of the text before and after the video of a one-question prompt in Qwen2's chat format."""
    prompt = question_prompt(question, system=system)
    return text_ids(tokenizer, prompt.prefix), text_ids(tokenizer, prompt.suffix)


def join_prompt_ids(*texts: list[int]) -> list[int]:
    """One prompt from the ids of its texts, with a placeholder between neighbours."""
    ids = list(texts[0])
    for text in texts[1:]:
        ids += [IMAGE_TOKEN_INDEX, *text]
    return ids


def tokenizer_image_token(
    prompt: str, tokenizer, image_token_index: int = IMAGE_TOKEN_INDEX, return_tensors: str | None = None
) -> list[int] | Tensor:
    """Ids of a prompt with `image_token_index` for each `<image>` in it.

    Returns:
        A list, or an int64 tensor [L] for `return_tensors="pt"`.
    """
    chunks = [tokenizer(chunk).input_ids for chunk in prompt.split(DEFAULT_IMAGE_TOKEN)]
    bos = tokenizer.bos_token_id
    starts_with_bos = bos is not None and chunks[0][:1] == [bos]
    ids = list(chunks[0])
    for chunk in chunks[1:]:
        ids.append(image_token_index)
        ids += chunk[1:] if starts_with_bos else chunk
    if return_tensors is None:
        return ids
    if return_tensors != "pt":
        raise ValueError(f"return_tensors is {return_tensors!r}; use 'pt' or None")
    return torch.tensor(ids, dtype=torch.long)
