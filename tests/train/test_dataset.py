"""Samples: true lengths from the index, frames and labels, and what happens to those that cannot be read."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from conftest import TINY
from training_data import turns

from videoxl.constants import IGNORE_INDEX
from videoxl.errors import DataError
from videoxl.model.loading import load_pretrained_model
from videoxl.train.data.bad_samples import BadSamples
from videoxl.train.data.collator import collate
from videoxl.train.data.dataset import VideoXLDataset, encode_record
from videoxl.train.data.records import read_records
from videoxl.train.data.sample_index import build_index, frame_choice, text_rule


@pytest.fixture(scope="module")
def parts():
    tokenizer, model, processor, _ = load_pretrained_model(TINY, device_map="cpu")
    model.config.image_aspect_ratio = "anyres"
    return tokenizer, model, processor


def make_dataset(parts, source, upbound: int = 0, fps: float = 1.0, **kwargs) -> VideoXLDataset:
    tokenizer, model, processor = parts
    records = read_records(str(source))
    choice = frame_choice(fps, upbound)
    rule = text_rule(tokenizer, "qwen_1_5")
    index = build_index(
        records,
        str(source),
        choice,
        lambda record: encode_record(record, tokenizer, "qwen_1_5"),
        rule,
        source.parent,
        progress=False,
    )
    return VideoXLDataset(records, index, tokenizer, processor, model.config, choice, 576, timeout=60, **kwargs)


def test_lengths_known_before_reading_are_those_of_what_is_read(parts, data):
    dataset = make_dataset(parts, data / "mixed.json")
    _, model, _ = parts
    seen = set()
    for number, plan in enumerate(dataset.plans):
        sample = dataset[(0, number)]
        batch = collate([sample])
        pixels = [dataset.image_processor.normalize(frames) for frames in batch["images"]]
        windows = []
        if pixels:
            output = model(batch["input_ids"], images=pixels, modalities=batch["modalities"])
            windows = list(output.window_ratios)
            assert output.past_key_values.get_seq_length() == plan.length
        assert batch["targets"] == sum(label != IGNORE_INDEX for _, labels in sample.encoded for label in labels[1:])
        assert len(windows) == plan.num_windows(1440)
        seen.add((sample.kind, len(sample.visual), plan.num_visual))
    assert seen == {
        ("image", 1, 576),
        ("image", 1, 288),
        ("image", 2, 1152),
        ("video", 1, 576),
        ("video", 1, 1728),
        ("text", 0, 0),
    }


@pytest.mark.parametrize(("fps", "upbound", "expected"), [(1, 0, 12), (2, 0, 24), (1, 5, 5), (0.5, 0, 6)])
def test_frames_at_a_rate_within_a_bound(parts, data, fps, upbound, expected):
    dataset = make_dataset(parts, data / "mixed.json", upbound, fps)
    number = next(i for i, record in enumerate(dataset.records) if record.id == "v1")
    assert len(dataset[(0, number)].visual[0]) == expected == dataset.plans[number].num_visual // 144


def test_the_index_is_built_once_and_follows_changes(parts, data, tmp_path, monkeypatch):
    shutil.copytree(data, tmp_path / "d")
    source = tmp_path / "d" / "captions.json"
    make_dataset(parts, source)
    from videoxl.train.data import sample_index

    looked = []
    look, shape = sample_index._look, sample_index.text_shape
    monkeypatch.setattr(sample_index, "_look", lambda name, *rest: looked.append(name) or look(name, *rest))
    monkeypatch.setattr(sample_index, "text_shape", lambda encoded: looked.append("text") or shape(encoded))
    make_dataset(parts, source)
    assert looked == []
    shutil.copy(source.parent / "wide.png", source.parent / "red.png")
    records = json.loads(source.read_text())
    records[0]["conversations"][1]["value"] = "something else"
    source.write_text(json.dumps(records))
    make_dataset(parts, source)
    assert sorted(looked) == [str(source.parent / "red.png"), "text"]
    (source.parent / "captions.index.json").write_text("{")
    with pytest.raises(DataError, match="damaged"):
        make_dataset(parts, source)


def test_a_sample_that_cannot_be_read_is_replaced_by_its_like(parts, data, tmp_path):
    shutil.copytree(data, tmp_path / "d")
    source = tmp_path / "d" / "mixed.json"
    dataset = make_dataset(parts, source)
    red = tmp_path / "d" / "red.png"
    red.write_bytes(red.read_bytes()[:400])  # the header stays, the picture does not
    number = next(i for i, record in enumerate(dataset.records) if record.id == "p0")
    sample = dataset[(0, number)]
    assert sample.id in ("p1", "p2") and dataset.plans[sample.index].key == dataset.plans[number].key
    assert [name for name, _ in sample.bad] == ["p0"] and "red.png" in sample.bad[0][1]
    assert collate([sample])["bad"] == sample.bad


def test_files_that_are_missing_or_hold_no_frames_are_known_from_the_index(parts, data, tmp_path):
    from videos import write_sound

    write_sound(tmp_path / "sound.mp4")
    shutil.copy(data / "red.png", tmp_path)
    records = [
        {"id": "gone", "image": "no.png", "conversations": turns("<image>\n?", "a")},
        {"id": "deaf", "video": "sound.mp4", "conversations": turns("<image>\n?", "a")},
        {"id": "fine", "image": "red.png", "conversations": turns("<image>\n?", "a")},
    ]
    (tmp_path / "r.json").write_text(json.dumps(records))
    dataset = make_dataset(parts, tmp_path / "r.json")
    assert [record.id for record in dataset.records] == ["fine"]
    reasons = dict(dataset.unreadable)
    assert "no such picture" in reasons["gone"] and "no video stream" in reasons["deaf"]


def test_samples_that_are_too_long_are_left_out_and_named(parts, data):
    plain = make_dataset(parts, data / "mixed.json")
    parts[1].config.beacon_ratio = [2, 8]
    dataset = make_dataset(parts, data / "mixed.json", max_positions=1700)
    (name, positions) = dataset.too_long[0]
    assert name == "v1" and len(dataset) == len(plain) - 1
    plan = next(p for p, r in zip(plain.plans, plain.records) if r.id == "v1")
    assert positions == plan.num_text + 864 + 1440 - plan.suffix  # beacons at ratio 2, and a window while it is read


def test_questions_that_share_a_video_count_its_text_once(parts, data, tmp_path):
    shared = {
        "id": "q",
        "video": "short.mp4",
        "conversations": [turns("<image>\nOne?", "1"), turns("<image>\nAnd two, then?", "2")],
    }
    (tmp_path / "r.json").write_text(json.dumps([shared]))
    shutil.copy(data / "short.mp4", tmp_path)
    dataset = make_dataset(parts, tmp_path / "r.json")
    batch = collate([dataset[(3, 0)]])
    assert batch["questions"] == 2 and len(batch["images"]) == 1 and batch["draw"] == (3, 0)
    first, second = batch["labels"]
    prefix = dataset.plans[0].texts[0]
    assert (first[:prefix] != IGNORE_INDEX).any() and (second[:prefix] == IGNORE_INDEX).all()
    assert (second != IGNORE_INDEX).any()


def test_questions_with_different_text_before_their_video_are_named(parts, data, tmp_path):
    later = [*turns("Hello.", "Hello."), *turns("<image>\nTwo?", "2")]
    record = {"id": "odd", "video": "short.mp4", "conversations": [turns("<image>\nOne?", "1"), later]}
    (tmp_path / "r.json").write_text(json.dumps([record]))
    with pytest.raises(DataError, match="'odd': its conversations have different text before"):
        make_dataset(parts, tmp_path / "r.json")


def test_where_a_whole_shape_is_unreadable_a_neighbour_takes_its_place(parts, data, tmp_path):
    shutil.copytree(data, tmp_path / "d")
    source = tmp_path / "d" / "mixed.json"
    dataset = make_dataset(parts, source)
    for colour in ("red", "green", "blue"):
        path = tmp_path / "d" / f"{colour}.png"
        path.write_bytes(path.read_bytes()[:400])
    numbers = [i for i, record in enumerate(dataset.records) if record.id in ("p0", "p1")]
    found = [dataset[(0, number)] for number in numbers]
    assert len({sample.id for sample in found}) == 1  # one for both, so that a batch keeps one plan
    assert {"p0", "p1", "p2"} <= {name for name, _ in found[0].bad}


def test_classes_are_numbered_as_in_the_training_data(parts, data):
    dataset = make_dataset(parts, data / "mixed.json")
    dataset.class_names = {"colour": ["red"]}
    dataset.use_classes({"colour": ["blue", "red"]})
    assert dataset.class_names["colour"].index("red") == 1
    dataset.class_names = {"colour": ["green"]}
    with pytest.raises(DataError, match="that the training data lacks"):
        dataset.use_classes({"colour": ["blue", "red"]})


def test_evidence_becomes_frames(parts, data, tmp_path):
    record = {"video": "long.mp4", "evidence": [[2.5, 4.0]], "conversations": turns("<image>\n?", "1")}
    (tmp_path / "r.json").write_text(json.dumps([record]))
    shutil.copy(data / "long.mp4", tmp_path)
    batch = collate([make_dataset(parts, tmp_path / "r.json")[(0, 0)]])
    assert batch["evidence"] == [[(2, 4)]]  # the frames on the screen from 2.5 s to 4 s, one a second


def test_bad_samples_are_written_down_counted_and_limited(tmp_path):
    log = BadSamples(tmp_path, total=300, max_fraction=0.01)
    log.add([("a", "broken"), ("b", "gone")])
    log.add([("a", "broken")])
    assert log.number == 2
    lines = [json.loads(line) for line in (tmp_path / "bad_samples.jsonl").read_text().splitlines()]
    assert lines == [{"id": "a", "reason": "broken"}, {"id": "b", "reason": "gone"}]
    resumed = BadSamples(tmp_path, total=300, max_fraction=0.01, resumed=True)
    assert resumed.number == 2
    resumed.add([("c", "cut")])
    with pytest.raises(DataError, match=r"4 of 300 samples cannot be read.*0\.01"):
        resumed.add([("d", "cut")])
    assert BadSamples(tmp_path, total=300, max_fraction=0.01).number == 0  # a new run starts a new log


def test_a_batch_pads_rows_on_the_right(parts, data):
    dataset = make_dataset(parts, data / "mixed.json")
    numbers = [i for i, record in enumerate(dataset.records) if record.id in ("p0", "p1")]
    batch = collate([dataset[(0, number)] for number in numbers])
    for row, mask, labels in zip(batch["input_ids"], batch["attention_mask"], batch["labels"]):
        length = int(mask.sum())
        assert mask[:length].all() and not mask[length:].any()
        assert (labels[length:] == IGNORE_INDEX).all() and torch.equal(row[length:], torch.zeros_like(row[length:]))
