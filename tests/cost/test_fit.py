"""A video that will not fit is refused before it is read, with what would fit."""

from __future__ import annotations

import re

import pytest
import torch

from videoxl.cache.summary import SummaryCache
from videoxl.constants import IMAGE_TOKEN_INDEX
from videoxl.cost.estimate import SLACK, reading_bytes
from videoxl.cost.fit import growth
from videoxl.errors import MemoryLimitError
from videoxl.model.room import ensure_room
from videoxl.model.shape import model_shape


def needed(config, frames, ratio):
    return int(sum(reading_bytes(model_shape(config), frames, ratio, "float32")) * SLACK)


def test_what_fits_passes_and_what_does_not_says_what_would(tiny):
    _, model, _ = tiny
    free = needed(model.config, 700, 8)
    ensure_room(model, 700, 8, free=free)
    with pytest.raises(MemoryLimitError, match="2,000 frames at ratio 8 need") as raised:
        ensure_room(model, 2000, 8, free=free)
    frames = int(re.search(r"([\d,]+) frames or", str(raised.value)).group(1).replace(",", ""))
    ratio = int(re.search(r"or ratio (\d+) would fit", str(raised.value)).group(1))
    assert 700 <= frames < 2000 and needed(model.config, frames, 8) <= free < needed(model.config, frames + 1, 8)
    assert needed(model.config, 2000, ratio) <= free < needed(model.config, 2000, ratio // 2)


def test_where_nothing_fits_it_says_so(tiny):
    _, model, _ = tiny
    with pytest.raises(MemoryLimitError, match="not even one frame would fit"):
        ensure_room(model, 64, 8, free=1000)


def test_where_the_ratio_is_fixed_none_is_advised(tiny):
    _, model, _ = tiny
    free = needed(model.config, 700, 8)
    with pytest.raises(MemoryLimitError, match=r"cpu; [\d,]+ frames would fit$"):
        ensure_room(model, 2000, 8, free=free, may_choose=False)


def test_what_a_memory_holds_is_not_asked_for_again(tiny):
    _, model, _ = tiny
    cache = SummaryCache(len(model.model.layers))
    cache.reserve(1600 * 18)
    heads, dim = model.config.num_key_value_heads, model.config.hidden_size // model.config.num_attention_heads
    step = torch.zeros(1, heads, 1500 * 18, dim)
    for index in range(len(cache.layers)):
        cache.update(step, step, index)
    work = int(reading_bytes(model_shape(model.config), 2000, 8, "float32")[1] * SLACK)
    ensure_room(model, 50, 8, held=1400, cache=cache, free=work)  # into room that is there
    kept = reading_bytes(model_shape(model.config), 3000, 8, "float32")[0]
    assert growth(cache, kept) == kept + kept // 8 - cache.allocated_bytes + cache.allocated_bytes // len(cache.layers)
    with pytest.raises(MemoryLimitError, match=r"1,500 more frames at ratio 8 need .* [\d,]+ frames would fit$"):
        ensure_room(model, 1500, 8, held=1500, cache=cache, free=work + 5_000_000)
    fork = cache.fork()
    assert growth(fork, kept) == kept + kept // 8  # the other one keeps its storage


def test_every_row_of_a_batch_takes_its_own_cache_and_window(tiny):
    _, model, _ = tiny
    cache, work = reading_bytes(model_shape(model.config), 300, 8, "float32")
    four = reading_bytes(model_shape(model.config), 300, 8, "float32", rows=4)
    assert four[0] == 4 * cache and work <= four[1] <= 4 * work
    free = int(sum(four) * SLACK)
    ensure_room(model, 300, 8, rows=4, free=free)
    with pytest.raises(MemoryLimitError, match="5 videos of 300 frames at ratio 8 need"):
        ensure_room(model, 300, 8, rows=5, free=free)


@pytest.mark.parametrize(
    ("mix", "ratio"), [("step-random", 2), ("sequence", 2), ("adapt-1024", 8), ("instance-random", None)]
)
def test_the_smallest_ratio_that_may_be_drawn_is_asked_for(tiny, monkeypatch, mix, ratio):
    _, model, _ = tiny
    model.config.beacon_ratio, model.config.beacon_ratio_mix = [7, 2, 4, 8], mix  # 7 does not divide the window
    model.config.max_position_embeddings = 2100
    asked = []
    monkeypatch.setattr("videoxl.model.generation.ensure_room", lambda model, frames, ratio, **_: asked.append(ratio))
    prompt = torch.tensor([[1, IMAGE_TOKEN_INDEX, 2]])
    output = model.generate(
        prompt, images=[torch.zeros(23, 3, 336, 336)], modalities=["video"], max_new_tokens=1,
        return_dict_in_generate=True,
    )  # fmt: skip
    drawn = output.past_key_values.window_ratios
    assert asked == [ratio or drawn[0]] and min(drawn) >= asked[0]


def test_it_is_asked_before_anything_is_read(tiny, monkeypatch):
    _, model, _ = tiny
    frames = torch.zeros(3, 3, 336, 336)
    memory = model.summarize(frames, prefix_ids=[1], ratio=4)

    def refuse(model, frames, ratio, held=0, cache=None, rows=1, **_):
        raise MemoryLimitError(f"{rows} x {frames} at {ratio} after {held}")

    for caller in ("generation", "memory"):
        monkeypatch.setattr(f"videoxl.model.{caller}.ensure_room", refuse)
    with pytest.raises(MemoryLimitError, match="1 x 3 at 4 after 0"):
        model.summarize(frames, prefix_ids=[1], ratio=4)
    with pytest.raises(MemoryLimitError, match="1 x 3 at 4 after 3"):
        memory.extend(frames)
    prompt = torch.tensor([[1, IMAGE_TOKEN_INDEX, 2], [1, IMAGE_TOKEN_INDEX, 3]])
    with pytest.raises(MemoryLimitError, match="2 x 3 at 8 after 0"):
        model.generate(prompt, images=[frames, frames], modalities=["video"])
    assert memory.num_frames == 3
    model.generate(prompt[:1], images=[frames[0]], modalities=["image"], max_new_tokens=1)  # pictures are small


def test_without_a_gpu_nothing_is_refused(tiny):
    _, model, _ = tiny
    with pytest.raises(MemoryLimitError):  # the same number, where it is known what is free
        ensure_room(model, 10_000_000, 8, free=1 << 30)
    assert ensure_room(model, 10_000_000, 8) is None
