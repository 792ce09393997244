"""Compressors: what each leaves of a video, on the one path from visual tokens to the cache."""

from __future__ import annotations

import pytest
import torch
from conftest import SAMPLE
from hypothesis import given
from hypothesis import strategies as st

from videoxl import VideoMemory, VideoXL
from videoxl.compression import COMPRESSORS, RatioChooser, Window, get_compressor
from videoxl.compression.plan import plan_span
from videoxl.errors import ConfigError, PromptError
from videoxl.model.loss import TrainingOptions

NAMES = ("beacon", "drop", "mean")
FEW = {"frames": 11, "max_new_tokens": 5}


@pytest.fixture(scope="module")
def session(small_base) -> VideoXL:
    return VideoXL.from_pretrained(small_base, device="cpu")


def windows_of(number: int, window: int, ratio: int) -> list[Window]:
    return list(plan_span(number, window, RatioChooser([ratio], "step-random", window, 1000)))


def test_a_window_without_a_whole_group_gives_reducers_nothing_to_read():
    """So that processes count it as no pass of the decoder: `windows_step` makes none."""
    *_, last = windows_of(43, 20, 4)  # 20, 20 and 3 tokens
    assert [get_compressor(name).has_rows([last]) for name in NAMES] == [True, False, False]
    assert get_compressor("none").has_rows(windows_of(43, 20, 0)[-1:])
    assert all(get_compressor(name).has_rows(windows_of(43, 20, 4)) for name in NAMES)


@given(st.integers(1, 200), st.integers(1, 40), st.integers(1, 12))
def test_reducers_keep_one_position_for_every_full_group(number, window, ratio):
    tokens = torch.arange(float(number)).reshape(1, -1, 1)
    for name in ("drop", "mean"):
        method, kept, spans = get_compressor(name), [], []
        for each in windows_of(number, window, min(ratio, window)):
            part = method.embed(None, tokens[:, each.start : each.stop], [each], None)
            assert part.shape[1] == method.num_kept(each) == method.num_rows(each)
            rows = method.token_of_row([each])
            assert len(rows) == part.shape[1] and all(0 <= row < each.num_tokens for row in rows)
            kept += part.flatten().tolist()
            spans += [(max(first, each.start), stop) for first, stop in method.spans(each)]
        if name == "drop":
            assert kept == [stop - 1 for _, stop in spans]
        else:
            assert kept == pytest.approx([sum(range(first, stop)) / (stop - first) for first, stop in spans])


def test_dropped_and_averaged_tokens_are_read_like_text(session):
    """Against the decoder itself: the reduced tokens as embeddings between the texts, all of them plain causal."""
    model, inner = session.model, session.model.model
    tokens = torch.randn(1, 480, model.config.hidden_size, generator=torch.Generator().manual_seed(0))
    prefix = torch.tensor([[1, 2, 3]])
    for name in ("drop", "mean"):
        memory = VideoMemory.start(model, prefix[0], 4, name)
        memory.extend_tokens(tokens.unflatten(1, (30, 16)).squeeze(0))
        kept = tokens[:, 3::4] if name == "drop" else tokens.unflatten(1, (-1, 4)).mean(dim=2)
        with torch.no_grad():
            embeds = torch.cat([inner.embed_tokens(prefix), kept], dim=1)
            plain = inner(inputs_embeds=embeds, use_cache=True)
        cache = plain[1]
        for own, wanted in zip(memory.cache.layers, cache.layers):
            torch.testing.assert_close(own.keys, wanted.keys, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(own.values, wanted.values, atol=1e-4, rtol=1e-4)
        assert memory.cache.get_query_offset() == 3 + 120 and memory.num_visual_tokens == 480


@pytest.mark.parametrize("name", NAMES)
def test_a_ratio_leaves_as_many_positions_by_every_method(session, name):
    answer = session.ask(SAMPLE, "What?", compressor=name, ratio=4, **FEW)
    assert answer.compressor == name and answer.ratios == (4,)
    assert answer.cached_positions == session.ask(SAMPLE, "What?", ratio=4, **FEW).cached_positions


def test_no_compression_is_ratio_0(session):
    kept = session.ask(SAMPLE, "What?", compressor="none", **FEW)
    assert kept.ratios == (0,) and kept.text == session.ask(SAMPLE, "What?", ratio=0, **FEW).text
    assert kept.cached_positions - kept.visual_tokens == session.read(SAMPLE, frames=1).cache.get_query_offset()


@pytest.mark.parametrize("name", [*NAMES, "none"])
def test_a_memory_knows_its_method(session, tmp_path, name):
    """Saved, loaded and extended, it goes on as it began; `generate` without a memory gives the same."""
    memory = session.read(SAMPLE, frames=11, compressor=name)
    memory.save(tmp_path / "m.safetensors")
    loaded = session.load_memory(tmp_path / "m.safetensors")
    assert loaded.reader.compressor.name == name
    assert loaded.beacon_spans().tolist() == memory.beacon_spans().tolist()
    answers = {session.ask(each, "What?", max_new_tokens=5).text for each in (memory, loaded)}
    answers.add(session.ask(SAMPLE, "What?", compressor=name, **FEW).text)
    assert len(answers) == 1
    with pytest.raises(PromptError, match="has its ratio and its compressor"):
        session.model.generate(torch.tensor([[1, -200, 2]]), memory=memory, compressor=name)


def test_a_files_unknown_method_is_named(session, tmp_path, monkeypatch):
    memory = session.read(SAMPLE, frames=11)
    monkeypatch.setattr(type(memory.reader.compressor), "name", "zip")
    monkeypatch.setitem(COMPRESSORS._known, "zip", type(memory.reader.compressor))
    memory.save(tmp_path / "m.safetensors")
    monkeypatch.delitem(COMPRESSORS._known, "zip")
    with pytest.raises(ConfigError, match="'zip' is not known; use beacon, none, drop, mean"):
        session.load_memory(tmp_path / "m.safetensors")


@pytest.mark.parametrize("name", [*NAMES, "none"])
def test_training_reads_by_the_same_path(session, name):
    """The loss of a text after a video equals the one from the logits of inference, and gradients reach the video."""
    model = session.model
    ids = torch.tensor([[5, 6, -200, 7, 8, 9, 10]])
    pixels = torch.randn(11, 3, 112, 112, generator=torch.Generator().manual_seed(1))
    given = {"images": [pixels], "modalities": ["video"], "training_options": TrainingOptions(compressor=name)}
    ratio = None if name == "none" else 4
    loss = model(input_ids=ids, labels=ids.clone(), ratio=ratio, **given).loss
    with torch.no_grad():
        logits = model(input_ids=ids, ratio=ratio, **given).logits[0, :-1].log_softmax(-1)
    # Labels after the first: one before the video, the first after it, and the text that `logits` are of.
    after_first = -logits.gather(1, ids[0, 4:, None]).sum()
    assert 0 < float(after_first) < float(loss) * 5 + 1e-4
    model.zero_grad()
    loss.backward()
    assert model.model.mm_projector[0].weight.grad.abs().sum() > 0
    model.zero_grad()


def test_names_are_listed():
    assert COMPRESSORS.names()[:4] == ["beacon", "none", "drop", "mean"]
