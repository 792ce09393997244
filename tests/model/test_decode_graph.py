"""The captured decoding step: its segments, run as they are, give what `text_step` gives."""

from __future__ import annotations

import gc

import pytest
import torch
from conftest import prompt_for, random_pixels

from videoxl.model import decode_graph
from videoxl.model.decode_graph import DecodeStep, decode_step


@torch.no_grad()
@pytest.mark.parametrize("rows", [1, 3])
def test_segments_equal_the_plain_step(tiny, rows):
    tokenizer, model, _ = tiny
    memory = model.summarize(random_pixels(12), prefix_ids=prompt_for(tokenizer)[0])
    plain, stepped = (memory.close_on_fork(rows)[0] for _ in range(2))
    step = DecodeStep(model, rows, capture=False)
    for _ in range(4):
        ids = torch.randint(0, 256, (rows, 1))
        position = torch.tensor([[plain.get_query_offset()]])
        hidden = model.model.text_step(model.model.embed_tokens(ids), plain, position)
        torch.testing.assert_close(step(ids, position, stepped), model.lm_head(hidden), atol=1e-5, rtol=1e-5)
    assert stepped.get_seq_length() == plain.get_seq_length()


def test_moved_or_replaced_weights_are_noticed(tiny):
    _, model, _ = tiny
    with torch.no_grad():
        step = DecodeStep(model, 1, capture=False)
    assert step.is_current(model)
    model.model.layers[1].mlp.up_proj.weight.data = model.model.layers[1].mlp.up_proj.weight.data.clone()
    assert not step.is_current(model)


def test_it_does_not_apply_on_the_cpu_and_keeps_no_model_alive(tiny):
    _, model, _ = tiny
    with torch.no_grad():
        assert decode_step(model, torch.zeros(1, 1, dtype=torch.long), None) is None
        decode_graph._steps[model] = {1: DecodeStep(model, 1, capture=False)}
    assert len(decode_graph._steps) == 1
    del model
    # The fixture's tuple holds the model, so only a copy can show that the registry does not.
    from conftest import TINY

    from videoxl.model.builder import load_pretrained_model

    other = load_pretrained_model(TINY, device_map="cpu")[1]
    with torch.no_grad():
        decode_graph._steps[other] = {1: DecodeStep(other, 1, capture=False)}
    del other
    gc.collect()
    assert len(decode_graph._steps) == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
def test_graphs_equal_the_plain_step_on_a_gpu(tiny):
    tokenizer, model, _ = tiny
    model = model.to("cuda", torch.bfloat16)
    memory = model.summarize(random_pixels(12), prefix_ids=prompt_for(tokenizer)[0])
    ids = prompt_for(tokenizer)[1].cuda()
    graphed = model.generate(ids, memory=memory, max_new_tokens=20, do_sample=False)
    model.train()  # switches the graphs off
    plain = model.generate(ids, memory=memory, max_new_tokens=20, do_sample=False)
    assert graphed.tolist() == plain.tolist()
