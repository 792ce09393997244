"""What the programs beside the `videoxl` command share: mistakes of the caller end with one line and status 2."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence

from videoxl.errors import VideoXLError

Main = Callable[[Sequence[str] | None], int | None]


def one_line_errors(main: Main) -> Callable[..., int]:
    """A program's `main(arguments)`, whose errors on purpose become a line on standard error; None counts as 0."""

    @functools.wraps(main)
    def run(arguments: Sequence[str] | None = None) -> int:
        try:
            return main(arguments) or 0
        except VideoXLError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2

    return run
