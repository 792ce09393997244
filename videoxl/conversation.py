"""Prompt templates under their published import path; defined in `videoxl.chat`."""

from videoxl.chat import (
    SELECT_MESSAGE,
    SYSTEM_MESSAGE,
    Conversation,
    conv_plain,
    conv_qwen,
    conv_templates,
    default_conversation,
    join_prompt_ids,
    video_prompt_ids,
)

__all__ = [
    "SELECT_MESSAGE",
    "SYSTEM_MESSAGE",
    "Conversation",
    "conv_plain",
    "conv_qwen",
    "conv_templates",
    "default_conversation",
    "join_prompt_ids",
    "video_prompt_ids",
]
