"""Deprecations: what to use instead, since when, and until when the old name works."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import NamedTuple, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class Deprecation(NamedTuple):
    """One deprecated name. `since`, `until`: versions; from `until` on the name is gone."""

    name: str
    use: str
    since: str
    until: str

    def __str__(self) -> str:
        return f"{self.name} is deprecated since {self.since} and works until {self.until}; use {self.use}"


DEPRECATIONS: dict[str, Deprecation] = {}
"""All declared deprecations, by name; a test fails for those whose `until` the version has reached."""


def deprecated(use: str, *, since: str, until: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Mark a function: its first call from each place warns (`FutureWarning`, which users see)."""

    def mark(function: Callable[P, R]) -> Callable[P, R]:
        about = Deprecation(f"{function.__module__}.{function.__qualname__}", use, since, until)
        DEPRECATIONS[about.name] = about

        @functools.wraps(function)
        def warns(*args: P.args, **kwargs: P.kwargs) -> R:
            warnings.warn(str(about), FutureWarning, stacklevel=2)
            return function(*args, **kwargs)

        return warns

    return mark


def overdue(version: str) -> list[Deprecation]:
    """Deprecations whose `until` a version ("1.2.3") has reached."""
    return [each for each in DEPRECATIONS.values() if _numbers(version) >= _numbers(each.until)]


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())
