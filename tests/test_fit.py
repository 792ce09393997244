"""A video that will not fit is refused before it is read, with what would fit."""

from __future__ import annotations

import re

import pytest
import torch

from videoxl.constants import IMAGE_TOKEN_INDEX
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


def test_what_a_memory_holds_is_not_asked_for_again(tiny):
    _, model, _ = tiny
    work = reading_bytes(model.config, 2000, 8, "float32")[1]
    free = needed(model.config, 2000, 8) - needed(model.config, 1500, 8) + int(work * SLACK) + 1
    check_fits(model, 500, 8, free, held=1500)
    with pytest.raises(MemoryLimitError, match=r"2,000 more frames at ratio 8 need .* \d+ frames would fit$"):
        check_fits(model, 2000, 8, free, held=1500)


def test_every_row_of_a_batch_takes_its_own_cache(tiny):
    _, model, _ = tiny
    cache, work = reading_bytes(model.config, 300, 8, "float32")
    free = int((4 * cache + work) * SLACK)
    check_fits(model, 300, 8, free, rows=4)
    with pytest.raises(MemoryLimitError, match="5 videos of 300 frames at ratio 8 need"):
        check_fits(model, 300, 8, free, rows=5)


def test_it_is_asked_before_anything_is_read(tiny, monkeypatch):
    _, model, _ = tiny
    frames = torch.zeros(3, 3, 336, 336)
    memory = model.summarize(frames, prefix_ids=[1], ratio=4)

    def refuse(model, frames, ratio, held=0, rows=1):
        raise MemoryLimitError(f"{rows} x {frames} at {ratio} behind {held}")

    monkeypatch.setattr("videoxl.fit.check_fits", refuse)
    with pytest.raises(MemoryLimitError, match="1 x 3 at 4 behind 0"):
        model.summarize(frames, prefix_ids=[1], ratio=4)
    with pytest.raises(MemoryLimitError, match="1 x 3 at 4 behind 3"):
        memory.extend(frames)
    prompt = torch.tensor([[1, IMAGE_TOKEN_INDEX, 2], [1, IMAGE_TOKEN_INDEX, 3]])
    with pytest.raises(MemoryLimitError, match="2 x 3 at None behind 0"):
        model.generate(prompt, images=[frames, frames], modalities=["video"])
    assert memory.num_frames == 3
    model.generate(prompt[:1], images=[frames[0]], modalities=["image"], max_new_tokens=1)  # pictures are small


def test_without_a_gpu_nothing_is_refused(tiny):
    _, model, _ = tiny
    check_fits(model, 10_000_000, 8)
