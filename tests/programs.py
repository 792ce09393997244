"""Programs run in the tests' own process: what a child would print, without the seconds that its imports take."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

from transformers.utils import logging


def call(main: Callable, *arguments) -> subprocess.CompletedProcess:
    """A program's `main` on a command line; warnings and transformers' logging are put back as they were."""
    given, verbosity, bars = sys.argv, logging.get_verbosity(), logging.is_progress_bar_enabled()
    output, errors = io.StringIO(), io.StringIO()
    sys.argv = [main.__module__, *map(str, arguments)]
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors), warnings.catch_warnings():
            try:
                status = main() or 0
            except SystemExit as end:
                status = end.code or 0
    finally:
        sys.argv = given
        logging.set_verbosity(verbosity)
        (logging.enable_progress_bar if bars else logging.disable_progress_bar)()
    return subprocess.CompletedProcess(arguments, status, output.getvalue(), errors.getvalue())


def main_of(script: Path) -> Callable:
    """The `main` of a script that is in no package."""
    spec = importlib.util.spec_from_file_location(script.stem, script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main
