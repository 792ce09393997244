"""Files that come with the package: the bundled model and video, configurations, needles.

In a checkout they are in `assets/`, `configs/` and `NIAH/datas/`; a wheel holds copies in `videoxl/_data`.
"""

from __future__ import annotations

from pathlib import Path

from videoxl.errors import DataError

PACKAGE = Path(__file__).resolve().parent.parent
CHECKOUT = PACKAGE.parent


def resource(name: str) -> Path:
    """The path of a file or folder, named as in a checkout (`configs/eval`). Raises `DataError` where it is absent."""
    for root in (CHECKOUT, PACKAGE / "_data"):
        # The folder beside an installed package is site-packages: only a checkout has this project's own file there.
        if (root / name).exists() and (root != CHECKOUT or (CHECKOUT / "pyproject.toml").is_file()):
            return root / name
    raise DataError(f"{name} is neither in {CHECKOUT} nor in the installed package; install videoxl again")


def bundled_model() -> Path:
    """The folder of the small model that comes with the package."""
    return resource("assets/videoxl-tiny")
