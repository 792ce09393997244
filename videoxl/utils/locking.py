"""One thread at a time in an object."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TypeVar

_Method = TypeVar("_Method", bound=Callable)


def one_at_a_time(method: _Method) -> _Method:
    """Hold the object's `_lock`: what one thread does with it is whole before the next one looks."""

    @functools.wraps(method)
    def run(self, *arguments, **options):
        with self._lock:
            return method(self, *arguments, **options)

    return run  # type: ignore[return-value]
