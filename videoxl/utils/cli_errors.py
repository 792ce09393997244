"""Shared by the programs beside the `videoxl` command: a caller's mistake ends with one line and exit status 2."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence

from videoxl.errors import VideoXLError

Main = Callable[[Sequence[str] | None], int | None]


def one_line_errors(main: Main) -> Callable[..., int]:
    """Wrap `main(arguments)`: a `VideoXLError` becomes one line on standard error and status 2; None counts as 0."""

    @functools.wraps(main)
    def run(arguments: Sequence[str] | None = None) -> int:
        try:
            return main(arguments) or 0
        except VideoXLError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2

    return run
