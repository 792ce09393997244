"""Whether a value from outside is a number of some kind. A bool is not; NumPy's scalars are."""

from __future__ import annotations

from numbers import Integral, Real


def is_number(value: object) -> bool:
    """A real number; NaN and infinity count."""
    return isinstance(value, Real) and not isinstance(value, bool)


def is_whole_number(value: object) -> bool:
    """An integer."""
    return isinstance(value, Integral) and not isinstance(value, bool)
