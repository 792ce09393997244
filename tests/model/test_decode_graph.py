"""The decoding step, run kernel by kernel, gives what `text_step` gives; on a GPU as one graph."""

from __future__ import annotations

import gc
import threading

import pytest
import torch
from conftest import TINY, random_pixels
from interpreted import by_interpreter

pytest.importorskip("triton", reason="Triton is not installed here; the second environment has it")
from torch import nn
from transformers import GenerationConfig

from videoxl.cache.summary import SummaryCache
from videoxl.constants import IMAGE_TOKEN_INDEX
from videoxl.kernels import thin_products
from videoxl.model.decoder import decode_graph
from videoxl.model.decoder.decode_graph import DecodeStep, decode_step, is_capturable, plain_product, speculate
from videoxl.model.decoder.fp8 import to_fp8
from videoxl.model.loading import load_pretrained_model

pytestmark = by_interpreter


def caches(model, rows: int, number: int) -> list[SummaryCache]:
    """Equal caches after a video of one frame and some text, the video stored once for all rows."""
    memory = model.summarize(random_pixels(1), prefix_ids=[1, 2, 3])
    made = [memory.finalize_for_query(rows)[0] for _ in range(number)]
    ids = torch.randint(0, 256, (rows, 4))
    for cache in made:
        model.model.text_step(model.model.embed_tokens(ids), cache)
    return made


@torch.no_grad()
@pytest.mark.parametrize(("rows", "most"), [(1, 16), (3, 16), (3, 2)])
def test_a_step_equals_the_plain_one(tiny, rows, most, monkeypatch):
    """With more rows than thin products take by PyTorch's own."""
    monkeypatch.setattr(thin_products, "MOST_ROWS", most)
    _, model, _ = tiny
    plain, stepped = caches(model, rows, 2)
    step = DecodeStep(model, rows, rows > 1, capture=False)
    assert step._product is (plain_product if rows > most else thin_products.thin_product)
    for _ in range(3):
        ids = torch.randint(0, 256, (rows, 1))
        position = torch.tensor([[plain.get_query_offset()]])
        hidden = model.model.text_step(model.model.embed_tokens(ids), plain, position)
        torch.testing.assert_close(step(ids, position, stepped), model.lm_head(hidden), atol=1e-5, rtol=1e-5)
    assert stepped.get_seq_length() == plain.get_seq_length()


@torch.no_grad()
def test_one_step_serves_several_sequences(tiny):
    """What it knows of a cache is read anew for each, and a cache that grows into other storage is found there."""
    _, model, _ = tiny
    step = DecodeStep(model, 1, False, capture=False)
    sequences = [caches(model, 1, 2) for _ in range(2)]
    for cache in (sequences[0][0], sequences[1][0]):
        cache.layers[0]._reallocate(cache.get_query_offset() + 5)
    for _ in range(2):
        for plain, stepped in sequences:
            ids = torch.randint(0, 256, (1, 1))
            position = torch.tensor([[plain.get_query_offset()]])
            hidden = model.model.text_step(model.model.embed_tokens(ids), plain, position)
            torch.testing.assert_close(step(ids, position, stepped), model.lm_head(hidden), atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("rows", [1, 2])
def test_a_greedy_answer_is_begun_ahead_and_comes_out_the_same(tiny, rows):
    """Expected tokens are computed once, unexpected ones anew; what was begun leaves no trace."""
    _, model, _ = tiny
    plain, stepped = caches(model, rows, 2)
    step = DecodeStep(model, rows, rows > 1, capture=False)
    decode_graph._steps[model] = {(rows, rows > 1): step}
    ran, run = [], step._run
    step._run = lambda: ran.append(1) or run()
    ids, computed = torch.randint(0, 256, (rows, 1)), []
    with speculate(model):
        for greedy in (True, True, False, True, False, False, False, True):
            position = torch.tensor([[plain.get_query_offset()]])
            hidden = model.model.text_step(model.model.embed_tokens(ids), plain, position)
            logits = step(ids, position, stepped)
            torch.testing.assert_close(logits, model.lm_head(hidden), atol=1e-5, rtol=1e-5)
            assert stepped.get_query_offset() == plain.get_query_offset()
            best = logits[:, -1].argmax(-1, keepdim=True)
            ids = best if greedy else (best + 1) % 256
            computed.append(len(ran))
    # A step for the first token and for each after one that was not expected, one ahead of each until three missed.
    assert computed == [2, 3, 4, 6, 7, 9, 10, 11]
    assert step._begun is None and not hasattr(decode_graph._speculation, "misses")
    position = torch.tensor([[plain.get_query_offset()]])
    step(ids, position, stepped)
    assert len(ran) == computed[-1] + 1  # not ahead any more


@torch.no_grad()
def test_another_sequence_in_between_is_not_taken_for_what_was_begun(tiny):
    _, model, _ = tiny
    (plain, stepped), (other, _) = caches(model, 1, 2), caches(model, 1, 2)
    step = DecodeStep(model, 1, False, capture=False)
    ids = torch.zeros(1, 1, dtype=torch.long)
    with speculate(model):
        best = step(ids, torch.tensor([[plain.get_query_offset()]]), stepped)[:, -1].argmax(-1, keepdim=True)
        step(best, torch.tensor([[other.get_query_offset()]]), other)
        found = step(best, torch.tensor([[stepped.get_query_offset()]]), stepped)
    for token in (ids, best):
        position = torch.tensor([[plain.get_query_offset()]])
        hidden = model.model.text_step(model.model.embed_tokens(token), plain, position)
    torch.testing.assert_close(found, model.lm_head(hidden), atol=1e-5, rtol=1e-5)


def test_moved_or_replaced_weights_are_noticed(tiny):
    _, model, _ = tiny
    step = DecodeStep(model, 1, False, capture=False)
    assert step.is_current(model)
    model.model.layers[1].mlp.up_proj.weight.data = model.model.layers[1].mlp.up_proj.weight.data.clone()
    assert not step.is_current(model)


def test_it_does_not_apply_on_the_cpu_and_keeps_no_model_alive():
    model = load_pretrained_model(TINY, device_map="cpu")[1]
    with torch.no_grad():
        assert decode_step(model, torch.zeros(1, 1, dtype=torch.long), None, SummaryCache(3)) is None
        decode_graph._steps[model] = {(1, False): DecodeStep(model, 1, False, capture=False)}
    known = len(decode_graph._steps)
    del model
    gc.collect()
    assert len(decode_graph._steps) == known - 1


def test_another_thread_is_not_made_to_run_ahead(tiny):
    """It takes over the step while something is begun for the first thread."""
    _, model, _ = tiny
    cache, other = caches(model, 1, 2)
    step = DecodeStep(model, 1, False, capture=False)
    ids = torch.zeros(1, 1, dtype=torch.long)

    def take_over():
        with torch.no_grad():
            step(ids, torch.tensor([[other.get_query_offset()]]), other)
        seen.append((step._begun, hasattr(decode_graph._speculation, "misses")))

    seen = []
    with torch.no_grad(), speculate(model):
        step(ids, torch.tensor([[cache.get_query_offset()]]), cache)
        assert step._begun is not None
        thread = threading.Thread(target=take_over)
        thread.start()
        thread.join()
        with speculate(model):  # one answer inside another's loop
            pass
        assert decode_graph._speculation.misses == 0
    assert seen == [(None, False)]


@torch.no_grad()
def test_what_was_begun_is_dropped_when_the_cache_has_changed(tiny):
    _, model, _ = tiny
    plain, stepped = caches(model, 1, 2)
    step = DecodeStep(model, 1, False, capture=False)
    ids = torch.zeros(1, 1, dtype=torch.long)
    decode_graph._steps[model] = {(1, False): step}
    with speculate(model):
        position = torch.tensor([[plain.get_query_offset()]])
        best = step(ids, position, stepped)[:, -1].argmax(-1, keepdim=True)
        stepped.crop(-2)
        found = step(best, position - 1, stepped)
    plain.crop(-1)
    hidden = model.model.text_step(model.model.embed_tokens(best), plain, position - 1)
    torch.testing.assert_close(found, model.lm_head(hidden), atol=1e-5, rtol=1e-5)
    assert all(layer._extent == layer.length for layer in stepped.layers)


def test_a_token_is_not_begun_where_the_cache_would_have_to_be_copied(tiny):
    _, model, _ = tiny
    (cache,) = caches(model, 1, 1)
    for layer in cache.layers:
        layer.replace(layer.keys[:, :, :-1], layer.values[:, :, :-1])
        layer._own(*(torch.cat([x, x[:, :, :1]], 2) for x in (layer._storage.keys, layer._storage.values)))
    step = DecodeStep(model, 1, False, capture=False)
    with torch.no_grad(), speculate(model):
        step(torch.zeros(1, 1, dtype=torch.long), torch.tensor([[cache.get_query_offset()]]), cache)
    assert step._begun is None and cache.layers[0]._storage.keys.shape[2] == cache.get_query_offset()


def test_adapters_and_hooks_are_not_captured(tiny):
    _, model, _ = tiny
    assert is_capturable(model)
    hook = model.model.layers[1].mlp.register_forward_hook(lambda *_: None)
    assert not is_capturable(model)
    hook.remove()
    model.model.layers[0].self_attn.q_proj = nn.Sequential(model.model.layers[0].self_attn.q_proj)
    model.model.layers[0].self_attn.q_proj.weight = None  # as adapters have one
    assert not is_capturable(model)


def test_a_model_put_in_fp8_is_noticed(tiny):
    _, model, _ = tiny
    step = DecodeStep(model, 1, False, capture=False)
    to_fp8(model)
    assert not step.is_current(model) and is_capturable(model)


def test_rows_without_anything_of_their_own_yet_take_the_plain_step(tiny):
    _, model, _ = tiny
    memory = model.summarize(random_pixels(1), prefix_ids=[1, 2, 3])
    cache = memory.finalize_for_query(2)[0]
    assert not cache.layers[0].has_storage
    prompt = torch.tensor([[1, 2, 3, IMAGE_TOKEN_INDEX, 7]]).repeat(2, 1)
    assert model.generate(prompt, memory=memory, max_new_tokens=3, do_sample=False).shape == (2, 3 + 144 + 1 + 3)


@pytest.mark.parametrize(
    ("args", "given", "greedy"),
    [
        ((), {}, True),
        ((), {"do_sample": True}, False),
        ((), {"num_beams": 2}, False),
        ((GenerationConfig(num_beams=3),), {}, False),
        ((), {"generation_config": GenerationConfig(do_sample=True)}, False),
        ((), {"prompt_lookup_num_tokens": 3}, False),
    ],
)
def test_which_answers_are_greedy(tiny, args, given, greedy):
    _, model, _ = tiny
    assert model._is_greedy(args, given) == greedy
    model.generation_config.num_beams = 3  # what is not said is the model's
    assert not model._is_greedy((GenerationConfig(max_new_tokens=3),), {})
