"""Ask questions about videos, save what was read, inspect files, estimate cost.

Answers, the line of numbers after them and tables go to standard output; progress and notes go to standard error.
An error prints one line and exits with status 2.
"""

from __future__ import annotations

import sys
import warnings
from typing import Annotated

import typer

from videoxl.cli import ask, estimate, info
from videoxl.cli.output import say, say_notes, start_notes
from videoxl.errors import VideoXLError
from videoxl.version import __version__

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help=__doc__.split("\n")[0],
)
app.command()(ask.ask)
app.command()(ask.summarize)
app.command()(info.info)
app.command("estimate")(estimate.estimate_command)


@app.callback(invoke_without_command=True)
def show_version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(f"videoxl {__version__}")
        raise typer.Exit


def main() -> None:
    """Entry point: typed errors become one line and status 2."""
    start_notes()
    warnings.showwarning = lambda message, *_, **__: say_notes([str(message)])
    warnings.filterwarnings("ignore", category=FutureWarning)
    try:
        app()  # typer itself exits with 2 for wrong usage and 130 for Ctrl-C
    except VideoXLError as error:
        say(f"error: {error}")
        sys.exit(2)
    except RuntimeError as error:
        torch = sys.modules.get("torch")
        if torch is None or not isinstance(error, torch.OutOfMemoryError):
            raise
        say("error: the GPU is out of memory; read fewer frames or use a larger ratio (`videoxl estimate` predicts it)")
        sys.exit(2)
