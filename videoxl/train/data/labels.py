"""Encodes conversations of training records as token ids and labels, as the published code does.

A record's turns are `{"from": "human" | "gpt", "value": text}`; `<image>` in a human turn marks a visual span.
"""

from __future__ import annotations

from collections.abc import Sequence

from videoxl.chat import SYSTEM_MESSAGE, check_text, plain_ids, tokenizer_image_token
from videoxl.constants import DEFAULT_IMAGE_TOKEN, IGNORE_INDEX, IMAGE_TOKEN_INDEX
from videoxl.errors import PromptError

_ROLES = {"human": "user", "gpt": "assistant"}

Turns = Sequence[dict[str, str]]


def encode_conversation(
    turns: Turns,
    tokenizer,
    version: str = "qwen_1_5",
    has_image: bool = True,
    system: str = SYSTEM_MESSAGE,
    control_tokens: bool = False,
) -> tuple[list[int], list[int]]:
    """Token ids and labels of one conversation.

    Args:
        version: `qwen_1_5` (Qwen2's chat format) or `plain` (placeholder, then caption; pretraining).
        has_image: whether `<image>` stands for visual input.
        system: system message of the chat format.
        control_tokens: let text such as `<|im_end|>` in a record be that token, as the published code does.

    Returns:
        (input_ids, labels), two equally long lists; `IGNORE_INDEX` for tokens without loss. As published, the
        chat format also trains on the tokens that frame every turn.

    Raises:
        PromptError: roles that do not alternate, an unknown version, or a plain record of another form.
    """
    if version == "plain":
        return _encode_plain(turns, tokenizer, control_tokens)
    if version != "qwen_1_5":
        raise PromptError(f"prompt version {version!r} is not known; use 'qwen_1_5' or 'plain'")
    return _encode_chat(check_turns(turns), tokenizer, has_image, system, control_tokens)


def check_turns(turns: Turns) -> list[dict[str, str]]:
    """Check that human and gpt turns alternate; a leading gpt turn is dropped, as published. Raises `PromptError`."""
    turns = list(turns)
    for turn in turns:
        role, value = turn.get("from"), turn.get("value")
        if not isinstance(role, str) or role not in _ROLES or not isinstance(value, str):
            raise PromptError(f"a turn needs 'from' (human or gpt) and a text as 'value'; got {str(turn)[:200]}")
        check_text(value)
    if turns and turns[0]["from"] == "gpt":
        turns = turns[1:]
    for place, turn in enumerate(turns):
        expected = ("human", "gpt")[place % 2]
        if turn["from"] != expected:
            raise PromptError(f"turn {place} is from {turn['from']!r}, expected {expected!r}: roles must alternate")
    return turns


def _encode_chat(turns: list[dict[str, str]], tokenizer, has_image: bool, system: str, control_tokens: bool):
    start, end = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    newline = tokenizer("\n").input_ids
    close = [end, *newline]
    header = [start, *tokenizer("system").input_ids, *newline, *tokenizer(system).input_ids]
    ids = [*header, *close]
    labels = [start, *[IGNORE_INDEX] * (len(header) - 1), *close]
    for turn in turns:
        name = [start, *tokenizer(_ROLES[turn["from"]]).input_ids, *newline]
        body = _encode_text(turn["value"], tokenizer, newline, has_image, control_tokens)
        learnt = body if turn["from"] == "gpt" else [IGNORE_INDEX] * len(body)
        ids += [*name, *body, *close]
        labels += [start, *[IGNORE_INDEX] * (len(name) - 1), *learnt, *close]
    return ids, labels


def _encode_text(text: str, tokenizer, newline: list[int], has_image: bool, control_tokens: bool) -> list[int]:
    number = text.count(DEFAULT_IMAGE_TOKEN) if has_image else 0
    if number == 0:
        return _ids(text, tokenizer, control_tokens)
    if not text.startswith(DEFAULT_IMAGE_TOKEN):  # one placeholder elsewhere moves to the front
        text = DEFAULT_IMAGE_TOKEN * number + "\n" + text.replace(DEFAULT_IMAGE_TOKEN, "").strip()
    rest = text.replace(DEFAULT_IMAGE_TOKEN, "")
    return [*[IMAGE_TOKEN_INDEX] * number, *newline, *_ids(rest, tokenizer, control_tokens)]


def _ids(text: str, tokenizer, control_tokens: bool) -> list[int]:
    return tokenizer(text).input_ids if control_tokens else plain_ids(tokenizer, text)


def _encode_plain(turns: Turns, tokenizer, control_tokens: bool):
    if len(turns) != 2 or DEFAULT_IMAGE_TOKEN not in turns[0]["value"]:
        raise PromptError(f"a plain record is an <image> turn and its caption; this one has {len(turns)} turns")
    before = tokenizer_image_token(DEFAULT_IMAGE_TOKEN, tokenizer)
    ids = [*before, *_ids(turns[1]["value"] + "\n", tokenizer, control_tokens)]
    seen = len(before)
    return ids, [*[IGNORE_INDEX] * seen, *ids[seen:]]
