"""The `videoxl` command, one file a group of commands. Heavy imports stand inside commands, so that help is quick."""

from videoxl.cli.app import main

__all__ = ["main"]
