"""Rows over one stored prefix give what rows with a copy each give, and the prefix is neither copied nor changed."""

from __future__ import annotations

import pytest
import torch
from conftest import prompt_for, random_pixels, with_spans

from videoxl.attention.backends import _part_in_float32, attend_shared, build_mask
from videoxl.cache.shared_prefix import SharedPrefixLayer, repeat_rows
from videoxl.cache.summary import SummaryCache

NEW = {"max_new_tokens": 6, "do_sample": False}


def whole(query, keys, values, mask):
    """Softmax in float64 over all keys at once."""
    groups = query.shape[1] // keys.shape[1]
    query, keys, values = (x.double() for x in (query, keys, values))
    keys, values = keys.repeat_interleave(groups, 1), values.repeat_interleave(groups, 1)
    scores = (query @ keys.transpose(2, 3) * query.shape[3] ** -0.5).masked_fill(~mask, float("-inf"))
    return scores.softmax(-1) @ values


@pytest.mark.parametrize(("steps", "own"), [(1, 1), (1, 9), (6, 6), (6, 11)])
@pytest.mark.parametrize("padded", [False, True])
def test_attention_to_a_shared_prefix_equals_attention_to_copies(steps, own, padded):
    torch.manual_seed(0)
    rows, heads, groups, stored, dim = 3, 4, 2, 40, 16
    query = torch.randn(rows, heads, steps, dim)
    shared = torch.randn(1, groups, stored, dim), torch.randn(1, groups, stored, dim)
    key, value = torch.randn(rows, groups, own, dim), torch.randn(rows, groups, own, dim)
    copies = (torch.cat([x.expand(rows, -1, -1, -1), y], 2) for x, y in zip(shared, (key, value)))
    key_mask = torch.ones(rows, stored + own, dtype=torch.long)
    if padded:
        key_mask[1, stored : stored + own // 2] = 0
    mask = build_mask("sdpa", steps, stored + own, key_mask, query)
    given = mask if padded else None
    found = attend_shared(query, shared, key, value, given, dim**-0.5)
    expected = whole(query, *copies, mask)
    torch.testing.assert_close(found.double(), expected, atol=2e-6, rtol=1e-5)


def test_what_a_prefix_takes_does_not_grow_with_the_rows():
    cache = SummaryCache(2)
    for index in range(2):
        cache.update(torch.randn(1, 2, 900, 8), torch.randn(1, 2, 900, 8), index)
    before = cache.layers[0].keys.clone()
    base = cache.fork()
    repeat_rows(cache, 16, "sdpa")
    step = torch.randn(16, 2, 1, 8)
    assert [cache.update(step, step, index)[0].shape for index in range(2)] == [(16, 2, 1, 8)] * 2
    assert cache.get_query_offset() == 901 and cache.layers[0].keys.shape == (16, 2, 901, 8)
    assert cache.shared_prefix(0)[0].data_ptr() == base.layers[0].keys.data_ptr()
    base.update(torch.randn(1, 2, 3, 8), torch.randn(1, 2, 3, 8), 0)  # in place after the prefix, or in a copy
    torch.testing.assert_close(cache.shared_prefix(0)[0], before, rtol=0, atol=0)
    copied = base.fork()
    repeat_rows(copied, 16, "eager")  # a back end without kernels for it
    assert copied.layers[0].keys.shape == (16, 2, 903, 8) and copied.shared_prefix(0) is None


def test_rows_of_unequal_length_keep_their_precision_in_16_bits():
    """A GPU's way for them, here on the CPU: keys with a large bias in common, as Qwen2's have."""
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 4, 3, 128), torch.randn(2, 4, 9, 128), torch.randn(2, 4, 9, 128))
    bias = torch.randn(128) * 8
    query, key = query + bias / 4, key + bias
    query, key, value = (x.bfloat16() for x in (query, key, value))
    mask = build_mask("sdpa", 3, 9, torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1, 1], [1] * 9]), query)
    output, lse = _part_in_float32(query, key, value, mask, 128**-0.5)
    scores = (query.double() @ key.double().transpose(2, 3) * 128**-0.5).masked_fill(~mask, float("-inf"))
    assert scores[mask.expand_as(scores)].abs().max() > 100
    torch.testing.assert_close(lse.double(), scores.logsumexp(-1), atol=1e-3, rtol=0)
    torch.testing.assert_close(output.double(), scores.softmax(-1) @ value.double(), atol=2e-2, rtol=1e-2)


def test_rows_are_chosen_and_forks_grow_apart():
    cache = SummaryCache(1)
    cache.update(torch.zeros(1, 2, 5, 4), torch.zeros(1, 2, 5, 4), 0)
    repeat_rows(cache, 3, "sdpa")
    step = torch.arange(3.0).view(3, 1, 1, 1).expand(3, 2, 1, 4)
    cache.update(step, step, 0)
    other = cache.fork()
    cache.reorder_cache(torch.tensor([2, 2, 0]))
    cache.update(step, step, 0)
    assert cache.layers[0].keys[:, 0, -2:, 0].tolist() == [[2, 0], [2, 1], [0, 2]]
    assert other.get_query_offset() == 6 and other.layers[0].keys[:, 0, -1, 0].tolist() == [0, 1, 2]
    other.crop(-1)
    assert other.get_query_offset() == 5 and isinstance(other.layers[0], SharedPrefixLayer)


def test_a_shared_cache_counts_is_cut_and_is_emptied_like_any_other():
    cache = SummaryCache(1)
    cache.update(torch.randn(1, 2, 50, 4), torch.randn(1, 2, 50, 4), 0)
    repeat_rows(cache, 3, "sdpa")
    step = torch.randn(3, 2, 3, 4)
    cache.update(step, step, 0)
    assert cache.num_bytes == 2 * 4 * (50 + 3 * 3) * 2 * 4 <= cache.allocated_bytes
    room = cache.layers[0].own._storage.keys.shape[2]
    cache.reorder_cache(torch.tensor([2, 0, 0]))
    assert torch.equal(cache.layers[0].own.keys, step[[2, 0, 0]])
    assert cache.layers[0].own._storage.keys.shape[2] == room  # not made anew for the next token
    cache.crop(-5)  # into what the rows share
    assert cache.get_query_offset() == 48 and cache.shared_prefix(0)[0].shape[2] == 48
    assert cache.update(step, step, 0)[0].shape[2] == 3 and cache.get_query_offset() == 51
    cache.reset()
    assert cache.get_query_offset() == 0 and cache.shared_prefix(0) is None


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
def test_gradients_and_other_back_ends_get_the_prefix_joined(tiny, backend):
    _, model, _ = tiny
    memory = model.summarize(random_pixels(12), prefix_ids=[1, 2])
    shared, plain = memory.finalize_for_query(2)[0], memory.finalize_for_query()[0]
    plain.batch_repeat_interleave(2)
    model.set_attn_implementation(backend)
    gradients = []
    for cache in (shared, plain):
        embeds = model.model.embed_tokens(torch.tensor([[3, 4], [5, 6]])).detach().requires_grad_()
        model.model.text_step(embeds, cache).square().sum().backward()
        gradients.append(embeds.grad)
    torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-4)


def test_unequal_questions_on_one_memory_get_the_answers_that_each_gets_alone(tiny):
    tokenizer, model, _ = tiny
    prompts = [prompt_for(tokenizer, question)[1][0] for question in ("Who?", "What colour has it?", "Why so, then?")]
    memory = model.summarize(random_pixels(23), prefix_ids=prompt_for(tokenizer)[0], ratio=4)
    longest = max(map(len, prompts))
    ids, mask = torch.full((3, longest), 256), torch.zeros(3, longest, dtype=torch.long)
    for index, prompt in enumerate(prompts):
        ids[index, : len(prompt)], mask[index, : len(prompt)] = prompt, 1
    together = model.generate(ids, attention_mask=mask, memory=memory, return_dict_in_generate=True, **NEW)
    assert isinstance(together.past_key_values.layers[0], SharedPrefixLayer)
    for row, prompt in zip(together.sequences, prompts):
        alone = model.generate(prompt[None], memory=memory, **NEW)
        assert row[-6:].tolist() == alone[0, -6:].tolist()
    model.set_attn_implementation("eager")  # copies
    assert torch.equal(model.generate(ids, attention_mask=mask, memory=memory, **NEW), together.sequences)


def test_more_videos_after_a_shared_memory_are_read_as_in_one_sequence(tiny):
    _, model, _ = tiny
    model.config.beacon_ratio = [4]
    ids, video, others = with_spans([1, 2], [3], [4, 5]), random_pixels(13), [random_pixels(12, s) for s in (7, 8)]
    memory = model.summarize(video, prefix_ids=[1, 2])
    rows = model.generate(ids.repeat(2, 1), memory=memory, images=others, modalities=["video"], **NEW)
    for row, other in zip(rows, others):
        alone = model.generate(ids, images=[video, other], modalities=["video"], **NEW)
        assert row.tolist() == alone[0].tolist()


def test_beams_share_their_prompt_and_find_what_copies_find(tiny):
    tokenizer, model, _ = tiny
    _, ids = prompt_for(tokenizer)
    arguments = {"images": [random_pixels(12)], "modalities": ["video"], "num_beams": 4, **NEW}
    shared = model.generate(ids, return_dict_in_generate=True, **arguments)
    assert isinstance(shared.past_key_values.layers[0], SharedPrefixLayer)
    model.set_attn_implementation("eager")
    assert torch.equal(model.generate(ids, **arguments), shared.sequences)
