"""Video memory: one encode, many questions; any cut gives what one call gives; files that are whole or absent."""

from __future__ import annotations

import gc
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, SAMPLE, load_golden_model, prompt_for, random_pixels, text_ids, with_spans

from videoxl import VideoMemory
from videoxl.errors import BatchError, MemoryFileError, PlanError, PromptError
from videoxl.media.choice import FrameChoice
from videoxl.media.stream import open_video
from videoxl.model.visual import frame_tokens

NEW = {"max_new_tokens": 6, "do_sample": False}


def direct(model, ids, pixels):
    return model.generate(ids, images=[pixels], modalities=["video"], **NEW).tolist()


@pytest.mark.parametrize("ratios", [[8], [2, 4, 8], [0], [7]])
@pytest.mark.parametrize("cuts", [[23], [1, 22], [10, 10, 3], [3, 1, 13, 6]])
@pytest.mark.filterwarnings("ignore::videoxl.errors.UnsummarisedTokensWarning")
def test_any_cut_gives_what_one_call_gives(tiny, tmp_path, ratios, cuts):
    tokenizer, model, _ = tiny
    model.config.beacon_ratio = ratios
    before, ids = prompt_for(tokenizer)
    pixels = random_pixels(23)
    expected = direct(model, ids, pixels)
    first, *rest = pixels.split(cuts)
    memory = model.summarize(first, prefix_ids=before)
    for piece in rest:
        model.generate(ids, memory=memory, **NEW)  # a question in between changes nothing
        memory.extend(piece)
    assert model.generate(ids, memory=memory, **NEW).tolist() == expected
    memory.save(tmp_path / "m.safetensors")
    loaded = VideoMemory.load(tmp_path / "m.safetensors", model)
    assert model.generate(ids, memory=loaded, **NEW).tolist() == expected


def test_extending_a_loaded_memory_goes_on_from_the_pending_tokens(tiny, tmp_path):
    tokenizer, model, _ = tiny
    model.config.beacon_ratio = [2, 4, 8]
    before, ids = prompt_for(tokenizer)
    pixels = random_pixels(37)
    memory = model.summarize(pixels[:13], prefix_ids=before)
    memory.save(tmp_path / "m.safetensors")
    loaded = VideoMemory.load(tmp_path / "m.safetensors", model)
    assert loaded.num_pending == 3 * 144
    loaded.extend(pixels[13:])
    assert model.generate(ids, memory=loaded, **NEW).tolist() == direct(model, ids, pixels)


def test_questions_do_not_see_each_other_and_rows_share_a_memory(tiny):
    tokenizer, model, _ = tiny
    before, ids = prompt_for(tokenizer)
    _, other = prompt_for(tokenizer, "And a quite different, longer question?")
    pixels = random_pixels(12)
    memory = model.summarize(pixels, prefix_ids=before, ratio=4)
    model.config.beacon_ratio = [4]
    for prompt in (ids, other, ids):
        assert model.generate(prompt, memory=memory, **NEW).tolist() == direct(model, prompt, pixels)
    rows = model.generate(ids.repeat(3, 1), memory=memory, **NEW).tolist()
    assert rows == direct(model, ids, pixels) * 3
    beams = model.generate(ids, memory=memory, num_beams=2, **NEW)
    expected = model.generate(ids, images=[pixels], modalities=["video"], num_beams=2, **NEW)
    assert beams.tolist() == expected.tolist()


def test_pictures_may_follow_a_memory(tiny):
    tokenizer, model, _ = tiny
    pieces = [text_ids(tokenizer, text) for text in ("film ", " picture ", " same?")]
    ids, pixels, picture = with_spans(*pieces), random_pixels(11), random_pixels(1, 5)
    memory = model.summarize(pixels, prefix_ids=pieces[0])
    found = model.generate(ids, memory=memory, images=[picture], modalities=["image"], **NEW)
    expected = model.generate(ids, images=[pixels, picture], modalities=["video", "image"], **NEW)
    assert found.tolist() == expected.tolist()


@pytest.mark.parametrize("mix", ["step-random", "sequence"])
def test_spans_after_a_memory_draw_on(tiny, mix):
    _, model, _ = tiny
    model.config.beacon_ratio, model.config.beacon_ratio_mix = [2, 4, 8], mix
    ids, video, other = with_spans([1, 2], [3], [4, 5]), random_pixels(23), random_pixels(12, 7)
    memory = model.summarize(video, prefix_ids=[1, 2])
    more = {"return_dict_in_generate": True, **NEW}
    held = model.generate(ids, memory=memory, images=[other], modalities=["video"], **more)
    whole = model.generate(ids, images=[video, other], modalities=["video"], **more)
    assert held.past_key_values.window_ratios == whole.past_key_values.window_ratios
    assert held.sequences.tolist() == whole.sequences.tolist()


def test_an_extend_that_breaks_inside_a_window_is_not_asked_or_saved(tiny, tmp_path, monkeypatch):
    tokenizer, model, _ = tiny
    before, ids = prompt_for(tokenizer)
    memory = model.summarize(random_pixels(12), prefix_ids=before)

    def fail(*arguments, **kwargs):
        raise torch.OutOfMemoryError

    with monkeypatch.context() as patch:
        patch.setattr(model.model.layers[1].mlp, "forward", fail)
        with pytest.raises(torch.OutOfMemoryError):
            memory.extend(random_pixels(10))
    for use in (
        lambda: model.generate(ids, memory=memory, **NEW),
        lambda: memory.save(tmp_path / "m.safetensors"),
        lambda: memory.extend(random_pixels(1)),
    ):
        with pytest.raises(MemoryFileError, match="interrupted extend"):
            use()


def test_a_stream_gives_what_its_frames_give_and_times_every_beacon(tiny):
    tokenizer, model, processor = tiny
    before, ids = prompt_for(tokenizer)
    with open_video(SAMPLE, processor, FrameChoice(num_frames=25), chunk=7) as stream:
        memory = model.summarize(stream, prefix_ids=before)
    with open_video(SAMPLE, processor, FrameChoice(num_frames=25)) as stream:
        frames = np.concatenate([chunk.frames for chunk in stream])
        times = stream.info.timestamps[stream.indices]
    pixels = processor.preprocess(frames)["pixel_values"]
    assert model.generate(ids, memory=memory, **NEW).tolist() == direct(model, ids, pixels)
    assert memory.timestamps == times.tolist()
    assert memory.source == {"path": str(SAMPLE), "fps": 4.0}
    spans = memory.beacon_spans()
    assert spans.shape == (2 * 180, 2)  # two full windows; five frames are pending
    assert spans[0].tolist() == [times[0], times[0]]
    assert spans[-1].tolist() == [times[19], times[19]]
    assert (np.diff(spans[:, 0]) >= 0).all()


def test_another_prefix_is_refused_with_both(tiny):
    _, model, _ = tiny
    memory = model.summarize(random_pixels(2), prefix_ids=[1, 2, 3])
    with pytest.raises(PromptError, match=r"\[1, 2, 4\].*\[1, 2, 3\]"):
        model.generate(with_spans([1, 2, 4], [5]), memory=memory, **NEW)


def test_another_model_is_refused_with_both_fingerprints(tiny, golden, tmp_path):
    _, model, _ = tiny
    _, other, _, _ = load_golden_model(golden)
    memory = model.summarize(random_pixels(2), prefix_ids=[1, 2, 3])
    memory.save(tmp_path / "m.safetensors")
    with pytest.raises(MemoryFileError) as caught:
        VideoMemory.load(tmp_path / "m.safetensors", other)
    assert memory.fingerprint["weights"] in str(caught.value)
    assert VideoMemory.start(other, [1]).fingerprint["weights"] in str(caught.value)
    with pytest.raises(MemoryFileError, match="another model"):
        other.generate(with_spans([1, 2, 3], [5]), memory=memory, **NEW)


def test_one_changed_weight_matrix_or_dtype_changes_the_fingerprint(tiny):
    _, model, _ = tiny
    before = VideoMemory.start(model, [1]).fingerprint
    with torch.no_grad():
        model.model.layers[2].mlp.up_proj.weight.mul_(1.01)
    changed = VideoMemory.start(model, [1]).fingerprint
    assert changed["weights"] != before["weights"] and changed["config"] == before["config"]
    model.config.beacon_ratio = [4]  # a memory records its ratio; it is no part of the model
    assert VideoMemory.start(model, [1]).fingerprint == changed
    assert VideoMemory.start(model.bfloat16(), [1]).fingerprint["dtype"] == "bfloat16"


def test_info_counts_and_the_model_may_be_gone(tiny):
    _, model, _ = tiny
    memory = model.summarize(random_pixels(12), prefix_ids=[1, 2, 3], ratio=16)
    info = memory.info()
    assert (info["frames"], info["visual_tokens"], info["pending_tokens"]) == (12, 1728, 288)
    assert (info["cached_positions"], info["window_ratios"], info["windows"]) == (3 + 90, [16], 1)
    orphan = VideoMemory(type("M", (), {})(), memory.cache, memory.reader, [1])
    gc.collect()
    with pytest.raises(MemoryFileError, match="model of this memory is gone"):
        orphan.extend(random_pixels(1))


def test_an_empty_memory_and_a_growing_one_with_adapt_are_refused(tiny):
    _, model, _ = tiny
    with pytest.raises(PromptError, match="no frames yet"):
        model.generate(with_spans([1], [2]), memory=VideoMemory.start(model, [1]), **NEW)
    model.config.beacon_ratio, model.config.beacon_ratio_mix = [2, 4], "adapt-100"
    with pytest.raises(PlanError, match="name one ratio"):
        model.summarize(random_pixels(10), prefix_ids=[1])


def test_files_are_not_overwritten_unasked_and_damage_is_named(tiny, tmp_path):
    _, model, _ = tiny
    memory = model.summarize(random_pixels(2), prefix_ids=[1])
    path = tmp_path / "m.safetensors"
    memory.save(path)
    whole = path.read_bytes()
    with pytest.raises(MemoryFileError, match="overwrite=True"):
        memory.save(path)
    memory.save(path, overwrite=True)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(MemoryFileError, match="cut short"):
        VideoMemory.load(path, model)
    with pytest.raises(MemoryFileError, match="no such memory"):
        VideoMemory.load(tmp_path / "none", model)
    with pytest.raises(MemoryFileError, match="no video memory"):
        VideoMemory.load(ROOT / "assets" / "tiny-random" / "model.safetensors", model)
    with pytest.raises(MemoryFileError, match="does not exist"):
        memory.save(tmp_path / "no" / "m.safetensors")


def test_a_full_disk_leaves_nothing(tmp_path):
    """A limit on file size stands for the full disk: writing past it fails in the same place."""
    script = f"""
import resource, signal, sys, torch
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
from conftest import TINY, random_pixels
from videoxl.errors import MemoryFileError
from videoxl.model.builder import load_pretrained_model
model = load_pretrained_model(TINY, device_map="cpu")[1]
memory = model.summarize(random_pixels(40), prefix_ids=[1])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    memory.save({str(tmp_path / "m.safetensors")!r})
except MemoryFileError as error:
    print("refused:", error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert "refused: cannot save the memory" in done.stdout, done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("ratios", [[8], [7], [2, 4, 8, 0]])
@pytest.mark.filterwarnings("ignore::videoxl.errors.UnsummarisedTokensWarning")
def test_windows_read_together_leave_what_they_leave_one_by_one(tiny, monkeypatch, ratios):
    _, model, _ = tiny
    model.config.beacon_ratio, model.config.beacon_window = ratios, 288
    tokens = frame_tokens(model, random_pixels(13))
    calls = []
    model.model.layers[0].register_forward_hook(lambda *_: calls.append(1))
    caches, numbers = [], []
    for at_once in (1, 100):
        monkeypatch.setattr("videoxl.model.runner.group_limit", lambda *_, at_once=at_once: at_once)
        calls.clear()
        memory = VideoMemory.start(model, [1, 2])
        memory.extend_tokens(tokens)
        caches.append(memory.finalize_for_query()[0])
        numbers.append(len(calls))
    assert numbers[0] == 1 + 7 > numbers[1] and caches[0].window_ratios == caches[1].window_ratios
    assert caches[0].get_seq_length() == caches[1].get_seq_length()
    for one, other in zip(caches[0].layers, caches[1].layers):
        torch.testing.assert_close(one.keys, other.keys, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(one.values, other.values, atol=1e-4, rtol=1e-4)


def test_the_second_question_reads_no_frame_and_copies_nothing(tiny):
    """Pending tokens are read for the first question; a later `extend` forgets that."""
    tokenizer, model, _ = tiny
    before, ids = prompt_for(tokenizer)
    memory = model.summarize(random_pixels(13), prefix_ids=before)
    assert memory.num_pending
    rows = []
    model.model.layers[0].register_forward_pre_hook(lambda _, args: rows.append(args[0].shape[1]))
    first = model.generate(ids, memory=memory, **NEW).tolist()
    storage = memory.cache.layers[0]._storage
    assert max(rows) > memory.num_pending
    rows.clear()
    assert model.generate(ids, memory=memory, **NEW).tolist() == first
    cache, _ = memory.finalize_for_query()
    model.model.text_step(torch.randn(1, 100, 96), cache)
    assert max(rows) < 120 and memory.cache.layers[0]._storage is cache.layers[0]._storage is storage
    memory.extend(random_pixels(5, 1))
    whole = model.summarize([random_pixels(13), random_pixels(5, 1)], prefix_ids=before)
    assert model.generate(ids, memory=memory, **NEW).tolist() == model.generate(ids, memory=whole, **NEW).tolist()


def test_a_fork_grows_in_place_also_after_a_question(tiny):
    tokenizer, model, _ = tiny
    before, ids = prompt_for(tokenizer)
    memory = model.summarize(random_pixels(13), prefix_ids=before)
    model.generate(ids, memory=memory, **NEW)
    fork = memory.fork()
    model.model.text_step(torch.randn(1, 9, 96), fork.cache)
    assert fork.cache.layers[0]._storage is memory.cache.layers[0]._storage


def test_videos_that_begin_alike_are_read_side_by_side(tiny, tmp_path):
    tokenizer, model, _ = tiny
    model.config.beacon_ratio = [4]
    before, ids = prompt_for(tokenizer)
    begin, *ends = (frame_tokens(model, random_pixels(number, seed)) for number, seed in ((13, 0), (19, 1), (19, 2)))
    memory = model.summarize(random_pixels(13, 0), prefix_ids=before)
    rows = memory.fork(2)
    for part in torch.stack(ends).split(7, dim=1):
        rows.extend_tokens(part)
    assert rows.num_frames == 32 and memory.num_frames == 13
    for number, end in enumerate(ends):
        alone = memory.fork()
        alone.extend_tokens(end)
        one = rows.row(number)
        assert one.num_pending == alone.num_pending > 0
        torch.testing.assert_close(one.cache.layers[-1].keys, alone.cache.layers[-1].keys, atol=1e-4, rtol=1e-4)
        assert model.generate(ids, memory=one, **NEW).tolist() == model.generate(ids, memory=alone, **NEW).tolist()
        one.save(tmp_path / f"{number}.safetensors")
        loaded = VideoMemory.load(tmp_path / f"{number}.safetensors", model)
        for each in (one, loaded, alone):  # they go on by themselves
            each.extend_tokens(begin)
        assert loaded.info() == one.info() and one.num_visual_tokens == alone.num_visual_tokens
        assert model.generate(ids, memory=loaded, **NEW).tolist() == model.generate(ids, memory=alone, **NEW).tolist()
    for wrong in (lambda: rows.extend_tokens(begin), lambda: rows.fork(2), lambda: rows.extend(random_pixels(1))):
        with pytest.raises(BatchError):
            wrong()
    with pytest.raises(BatchError, match="taken out with row"):
        rows.save("nowhere")
    with pytest.raises(BatchError, match=r"out with row\(\)"):
        model.generate(ids, memory=rows, **NEW)


def test_a_fork_grows_apart_and_tokens_made_before_give_what_frames_give(tiny):
    tokenizer, model, _ = tiny
    model.config.beacon_ratio = [8]
    before, ids = prompt_for(tokenizer)
    pixels = random_pixels(23)
    tokens = torch.cat([frame_tokens(model, part) for part in pixels.split(4)])
    memory = VideoMemory.start(model, before, 8)
    memory.extend_tokens(tokens[:12])
    fork = memory.fork()
    fork.extend_tokens(tokens[12:], [float(second) for second in range(12, 23)])
    assert (memory.num_frames, fork.num_frames) == (12, 23)
    assert model.generate(ids, memory=fork, **NEW).tolist() == direct(model, ids, pixels)
    assert model.generate(ids, memory=memory, **NEW).tolist() == direct(model, ids, pixels[:12])
    assert fork.timestamps[12:] == [float(second) for second in range(12, 23)]
    with pytest.raises(BatchError, match="2 timestamps"):
        fork.extend_tokens(tokens[:1], [0.0, 1.0])
