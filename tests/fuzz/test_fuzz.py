"""A minute of what `scripts/fuzz.py` does for hours: damaged files of every kind, by seed."""

from __future__ import annotations

import itertools
import time
from collections import Counter

import pytest
from targets import TARGETS, campaign

SECONDS = 8.0  # for each kind
LEAST = 12  # tries, on a slow machine too


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", TARGETS)
def test_damaged_files_end_in_a_right_result_or_one_typed_error(name, tmp_path):
    seen: Counter[str] = Counter()
    stop = time.monotonic() + SECONDS
    for seed, outcome in campaign(name, tmp_path, itertools.count()):
        assert outcome in ("read", "refused"), f"{name}, seed {seed}: {outcome}"
        seen[outcome] += 1
        if time.monotonic() > stop and sum(seen.values()) >= LEAST:
            break
    assert seen["refused"], f"{name}: nothing was damaged enough in {dict(seen)}"
