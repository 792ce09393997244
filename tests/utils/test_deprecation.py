"""A deprecated name warns with what to use and until when, and is gone in time."""

import pytest

from videoxl.utils import deprecation
from videoxl.utils.deprecation import DEPRECATIONS, deprecated, overdue
from videoxl.version import __version__


def test_nothing_deprecated_outlives_its_time():
    assert overdue(__version__) == []


def test_a_deprecated_function_works_and_says_what_to_use_until_when(monkeypatch):
    monkeypatch.setattr(deprecation, "DEPRECATIONS", {})

    @deprecated("read", since="0.9", until="0.10")
    def load(path: str) -> str:
        """What it did."""
        return path.upper()

    with pytest.warns(FutureWarning, match=r"load is deprecated since 0\.9 and works until 0\.10; use read"):
        assert load("film") == "FILM"
    assert load.__doc__ == "What it did."
    assert not overdue("0.9.5") and [each.use for each in overdue("0.10")] == ["read"]  # 10 comes after 9
    assert not DEPRECATIONS
