"""Memory files: every damage is found, in whatever part is read; the first version is read; copies and threads."""

from __future__ import annotations

import copy
import json
import os
import pickle
import signal
import struct
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch
from conftest import ROOT, prompt_for, random_pixels
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from videoxl import VideoMemory
from videoxl.cache.fingerprint import model_fingerprint, sampled_fingerprint
from videoxl.cache.memory_file import read_state
from videoxl.errors import MemoryFileError
from videoxl.model.builder import load_pretrained_model
from videoxl.utils.checksum import text_checksum

NEW = {"max_new_tokens": 6, "do_sample": False}


@pytest.fixture
def saved(tiny, tmp_path):
    """(model, memory, file, answer, prompt) of eleven frames: windows and pending tokens."""
    tokenizer, model, _ = tiny
    model.config.beacon_ratio = [8]
    before, ids = prompt_for(tokenizer)
    memory = model.summarize(random_pixels(11), prefix_ids=before)
    path = tmp_path / "m.safetensors"
    memory.save(path)
    return model, memory, path, model.generate(ids, memory=memory, **NEW).tolist(), ids


def rewritten(path, change, digests: bool = True) -> None:
    """Change tensors and state of a file; `digests`: as one would who makes such a file on purpose."""
    with safe_open(path, "pt") as file:
        metadata = dict(file.metadata())
    tensors, state = load_file(path), json.loads(metadata["state"])
    change(tensors, state)
    metadata["state"] = json.dumps(state)
    if digests:
        metadata["checksum"] = text_checksum(metadata["state"])
    else:
        metadata["version"] = "1"
        metadata.pop("checksum")
    save_file({name: each.contiguous() for name, each in tensors.items()}, path, metadata)


def as_first_version(path, model, change=lambda tensors, state: None) -> None:
    def strip(tensors, state):
        state.pop("tensors")
        state["fingerprint"] = sampled_fingerprint(model)
        change(tensors, state)

    rewritten(path, strip, digests=False)


def test_a_flipped_bit_anywhere_is_found(saved):
    model, _, path, _, _ = saved
    whole = path.read_bytes()
    header = 8 + struct.unpack("<Q", whole[:8])[0]
    rng = np.random.default_rng(0)
    places = [*range(8), *rng.integers(8, header, 60), *rng.integers(header, len(whole), 60), len(whole) - 1]
    for place in map(int, places):
        broken = bytearray(whole)
        broken[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(broken)
        with pytest.raises(MemoryFileError):
            VideoMemory.load(path, model)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.7, 0.999])
def test_a_cut_file_is_named(saved, share):
    model, _, path, _, _ = saved
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(MemoryFileError, match=r"m\.safetensors"):
        VideoMemory.load(path, model)


def test_the_first_version_is_read(saved):
    model, _, path, expected, ids = saved
    as_first_version(path, model)
    loaded = VideoMemory.load(path, model)
    assert model.generate(ids, memory=loaded, **NEW).tolist() == expected
    loaded.save(path, overwrite=True)
    assert read_state(path)["format_version"] == 2


def swap(tensors, state):
    tensors["layers.0.keys"], tensors["layers.1.keys"] = tensors["layers.1.keys"][:, 1:], tensors["layers.0.keys"]


CHANGES = {
    "a layer less": lambda t, s: (t.pop("layers.1.keys"), t.pop("layers.1.values"), s.update(num_layers=1)),
    "no keys": lambda t, s: t.pop("layers.1.keys"),
    "an empty layer": lambda t, s: (t.pop("layers.1.keys"), t.pop("layers.1.values")),
    "shorter keys": lambda t, s: t.update({"layers.0.keys": t["layers.0.keys"][:, :-1]}),
    "shorter all": lambda t, s: t.update({n: x[:, :-1] for n, x in t.items() if n.startswith("layers")}),
    "other heads": lambda t, s: t.update({"layers.0.keys": t["layers.0.keys"].repeat(2, 1, 1)}),
    "NaN": lambda t, s: t["layers.0.values"].view(-1)[3:4].fill_(float("nan")),
    "infinity": lambda t, s: t["layers.1.keys"].view(-1)[-1:].fill_(float("-inf")),
    "NaN pending": lambda t, s: t["pending"].view(-1)[:1].fill_(float("nan")),
    "other dtype": lambda t, s: t.update({"layers.0.keys": t["layers.0.keys"].double()}),
    "whole numbers": lambda t, s: t.update({"layers.0.keys": t["layers.0.keys"].int()}),
    "other ratios": lambda t, s: s.update(window_ratios=[4] * len(s["window_ratios"])),
    "a window more": lambda t, s: s["window_ratios"].append(8),
    "another window": lambda t, s: s.update(window=s["window"] * 2),
    "a longer prefix": lambda t, s: s["prefix_ids"].append(1),
    "an unknown token": lambda t, s: s["prefix_ids"].__setitem__(0, 1 << 40),
    "fewer frames": lambda t, s: t.update({n: t[n][:-1] for n in ("timestamps", "indices")}),
    "no frames": lambda t, s: t.update({n: t[n][:0] for n in ("timestamps", "indices")}),
    "times alone": lambda t, s: t.update(timestamps=t["timestamps"][:-3]),
    "a pending token less": lambda t, s: t.update(pending=t["pending"][:-1]),
    "no pending": lambda t, s: t.pop("pending"),
    "spans": lambda t, s: t.update(beacon_spans=t["beacon_spans"][:-1]),
    "no times": lambda t, s: t.pop("timestamps"),
    "an unknown mix": lambda t, s: s.update(ratio_mix=3),
    "no ratios": lambda t, s: s.update(ratios=[]),
    "a ratio of text": lambda t, s: s.update(ratios=["8"]),
    "a huge number": lambda t, s: s.update(num_layers=1 << 63),
    "a list as state": lambda t, s: s.update(source=[1]),
    "a method of another kind": lambda t, s: s.update(compressor=3),
    "another fingerprint": lambda t, s: s["fingerprint"].update(weights="0" * 16),
}


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("version", [1, 2])
def test_what_does_not_fit_the_plan_or_the_model_is_refused(saved, name, version):
    model, _, path, _, _ = saved
    if version == 1:
        as_first_version(path, model, CHANGES[name])
    else:

        def change(tensors, state):
            from videoxl.utils.checksum import tensor_checksums

            CHANGES[name](tensors, state)
            state["tensors"] = {
                key: {
                    "dtype": str(each.dtype).removeprefix("torch."),
                    "shape": list(each.shape),
                    "blocks": tensor_checksums(each),
                }
                for key, each in tensors.items()
            }

        rewritten(path, change)
    with pytest.raises(MemoryFileError, match=r"m\.safetensors"):
        VideoMemory.load(path, model)


def test_damage_goes_unseen_only_where_it_is_asked_for(saved):
    model, _, path, _, _ = saved
    whole = bytearray(path.read_bytes())
    whole[-2000] ^= 1
    path.write_bytes(whole)
    with pytest.raises(MemoryFileError, match=r"checksum of \S+, block 0, differs"):
        VideoMemory.load(path, model)
    VideoMemory.load(path, model, verify=False)


def test_nan_is_not_saved(saved):
    _, memory, path, _, _ = saved
    memory.cache.layers[0].keys[0, 0, 0, 0] = float("nan")
    before = path.read_bytes()
    with pytest.raises(MemoryFileError, match="NaN"):
        memory.save(path, overwrite=True)
    assert path.read_bytes() == before


def test_copies_are_forks_and_pickles_say_how_to_save(saved):
    model, memory, _, expected, ids = saved
    for other in (copy.copy(memory), copy.deepcopy(memory)):
        other.extend(random_pixels(3))
        assert other.num_frames == 14 and memory.num_frames == 11
        assert model.generate(ids, memory=memory, **NEW).tolist() == expected
    with pytest.raises(MemoryFileError, match="save"):
        pickle.dumps(memory)


def test_questions_beside_an_extend_see_what_was_before_or_after(tiny):
    tokenizer, model, _ = tiny
    model.config.beacon_ratio = [8]
    before, ids = prompt_for(tokenizer)
    pixels = random_pixels(14)
    memory = model.summarize(pixels[:5], prefix_ids=before)
    allowed = []
    for stop in (5, 8, 11, 14):
        allowed.append(model.generate(ids, memory=model.summarize(pixels[:stop], prefix_ids=before), **NEW).tolist())
    seen, errors, done = [], [], threading.Event()

    def ask():
        try:
            while not done.is_set():
                seen.append(model.generate(ids, memory=memory, **NEW).tolist())
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for start in (5, 8, 11):
        memory.extend(pixels[start : start + 3])
        time.sleep(0.05)
    done.set()
    for thread in threads:
        thread.join()
    assert not errors and all(answer in allowed for answer in seen)
    assert model.generate(ids, memory=memory, **NEW).tolist() == allowed[-1]


def test_the_fingerprint_covers_every_weight_and_is_computed_once(golden, tmp_path, monkeypatch):
    monkeypatch.setenv("VIDEOXL_CACHE", str(tmp_path))
    model = load_pretrained_model(golden / "tiny", device_map="cpu")[1]
    found = model_fingerprint(model)
    (entry,) = (tmp_path / "weights").glob("*.json")
    assert json.loads(entry.read_text())["weights"] == found["weights"]
    weight = model.model.layers[1].mlp.up_proj.weight
    before = weight[1, 1].item()
    weight.data[1, 1] = 9.0  # a write that torch does not count
    assert model_fingerprint(model)["weights"] != found["weights"]
    weight.data[1, 1] = before
    assert model_fingerprint(model) == found
    hashed = []
    monkeypatch.setattr("videoxl.cache.fingerprint._hash_weights", lambda model: hashed.append(1) or "x")
    again = load_pretrained_model(golden / "tiny", device_map="cpu")[1]
    assert model_fingerprint(again) == found and not hashed
    monkeypatch.undo()
    monkeypatch.setenv("VIDEOXL_CACHE", str(tmp_path))
    weight = again.model.layers[0].mlp.up_proj.weight
    before = weight[1, 1].item()
    with torch.no_grad():
        weight[1, 1] += 0.5  # not one of the sampled numbers
    assert sampled_fingerprint(again) == sampled_fingerprint(model)
    assert model_fingerprint(again)["weights"] != found["weights"]
    with torch.no_grad():
        weight[1, 1] = before
    assert model_fingerprint(again) == found
    entry.write_text("{")
    assert model_fingerprint(load_pretrained_model(golden / "tiny", device_map="cpu")[1]) == found


def test_a_killed_writer_leaves_nothing_that_the_next_one_does_not_sweep(saved):
    _, memory, path, _, _ = saved
    script = f"""
import sys, time
sys.path.insert(0, {str(ROOT)!r})
from videoxl.utils.files import whole_file, whole_folder
from pathlib import Path
path = Path({str(path)!r})
with whole_file(path) as draft, whole_folder(path.with_suffix(".folder")) as folder:
    draft.write_bytes(bytes(1000))
    (folder / "a").write_bytes(bytes(1000))
    print("there", flush=True)
    time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    process.stdout.readline()
    folder = path.parent
    assert len(list(folder.glob(".*.tmp"))) == 2
    memory.save(path, overwrite=True)
    assert len(list(folder.glob(".*.tmp"))) == 2  # its process is alive
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    memory.save(path, overwrite=True)
    assert [each.name for each in folder.glob(".*.tmp")] == [
        each.name for each in folder.glob(".*.tmp") if "folder" in each.name
    ]
    from videoxl.utils.files import whole_folder

    with whole_folder(path.with_suffix(".folder")):
        pass
    assert list(folder.glob(".*.tmp")) == []
