"""`videoxl info`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from videoxl.cli.options import AsJson
from videoxl.cli.output import print_facts


def info(
    path: Annotated[Path, typer.Argument(help="A checkpoint folder, a memory file or a video.")],
    as_json: AsJson = False,
) -> None:
    """Describe a checkpoint, a memory or a video."""
    from videoxl.session.describe import describe

    facts = describe(path)
    if as_json:
        print(json.dumps(facts))
        return
    print_facts(facts)
