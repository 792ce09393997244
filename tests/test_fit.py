"""A video that will not fit is refused before it is read, with what would fit."""

from __future__ import annotations

import re

import pytest
import torch

from videoxl.errors import MemoryLimitError
from videoxl.estimate import SLACK, reading_bytes
from videoxl.fit import check_fits


def needed(config, frames, ratio):
    return int(sum(reading_bytes(config, frames, ratio, "float32")) * SLACK)


def test_what_fits_passes_and_what_does_not_says_what_would(tiny):
    _, model, _ = tiny
    free = needed(model.config, 700, 8)
    check_fits(model, 700, 8, free)
    with pytest.raises(MemoryLimitError, match="2,000 frames at ratio 8 need") as raised:
        check_fits(model, 2000, 8, free)
    frames = int(re.search(r"([\d,]+) frames or", str(raised.value)).group(1).replace(",", ""))
    ratio = int(re.search(r"or ratio (\d+) would fit", str(raised.value)).group(1))
    assert 700 <= frames < 2000 and needed(model.config, frames, 8) <= free < needed(model.config, frames + 1, 8)
    assert needed(model.config, 2000, ratio) <= free < needed(model.config, 2000, ratio // 2)


def test_where_nothing_fits_it_says_so(tiny):
    _, model, _ = tiny
    with pytest.raises(MemoryLimitError, match="not even one frame would fit"):
        check_fits(model, 64, 8, 1000)


def test_the_smallest_ratio_that_can_be_drawn_counts(tiny):
    _, model, _ = tiny
    model.config.beacon_ratio = [8, 2]
    free = needed(model.config, 2000, 8)
    check_fits(model, 2000, 8, free)
    with pytest.raises(MemoryLimitError, match="at ratio 2 need"):
        check_fits(model, 2000, None, free)


def test_summarize_asks_before_it_reads(tiny, monkeypatch):
    _, model, _ = tiny

    def refuse(model, frames, ratio):
        raise MemoryLimitError(f"{frames} at {ratio}")

    monkeypatch.setattr("videoxl.fit.check_fits", refuse)
    with pytest.raises(MemoryLimitError, match="3 at 4"):
        model.summarize(torch.zeros(3, 3, 336, 336), prefix_ids=[1], ratio=4)


def test_without_a_gpu_nothing_is_refused(tiny):
    _, model, _ = tiny
    check_fits(model, 10_000_000, 8)
