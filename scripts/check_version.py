"""Check that version, changelog and tag match.

python scripts/check_version.py            the newest numbered section of CHANGELOG.md is the version
python scripts/check_version.py v0.2.0     and so is this tag
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def version_of(text: str) -> str:
    """The version that `videoxl/version.py` declares."""
    found = re.search(r'^__version__ = "(.+)"$', text, re.M)
    return found[1] if found else ""


def released(changelog: str) -> str:
    """The newest numbered section of a changelog; empty where there is none."""
    found = re.search(r"^## (\d\S*)", changelog, re.M)
    return found[1] if found else ""


def problems(version: str, changelog: str, tag: str | None = None) -> list[str]:
    """Mismatches, one line each."""
    found = []
    if released(changelog) != version:
        found.append(f"version is {version}, the newest section of CHANGELOG.md is {released(changelog) or 'none'}")
    if tag is not None and tag != f"v{version}":
        found.append(f"tag is {tag}, version is {version}; tag v{version}")
    return found


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tag", nargs="?", help="release tag to compare, such as v0.2.0")
    tag = parser.parse_args(arguments).tag
    version = version_of((ROOT / "videoxl" / "version.py").read_text())
    found = problems(version, (ROOT / "CHANGELOG.md").read_text(), tag)
    for line in found:
        print(f"error: {line}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
