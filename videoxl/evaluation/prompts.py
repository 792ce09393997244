"""Prompts of benchmarks: a conversation's text cut at its visual inputs."""

from __future__ import annotations

from videoxl.constants import DEFAULT_IMAGE_TOKEN
from videoxl.conversation import conv_templates
from videoxl.errors import ConfigError

_MARK = "\0visual\0"  # no user's text holds it


def check_template(name: str) -> None:
    """Raise `ConfigError` for a conversation template that there is not."""
    if name not in conv_templates:
        raise ConfigError(f"conv_template {name!r} is not known; use one of {', '.join(conv_templates)}")


def prompt_texts(template: str, context: str, num_visuals: int) -> list[str]:
    """The text before, between and behind `num_visuals` visual inputs of a one-turn prompt, `num_visuals + 1` texts.

    As published, `<image>` in the context stands for a visual input where it comes as often as there are such inputs;
    else they come first, and whatever the context holds is text.
    """
    if num_visuals and context.count(DEFAULT_IMAGE_TOKEN) == num_visuals:
        context = context.replace(DEFAULT_IMAGE_TOKEN, _MARK)
    elif num_visuals:
        context = " ".join([_MARK] * num_visuals) + "\n" + context
    conversation = conv_templates[template].copy()
    conversation.append_message(conversation.roles[0], context)
    conversation.append_message(conversation.roles[1], None)
    return conversation.get_prompt().split(_MARK)
