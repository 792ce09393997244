"""Reading records: files, patterns, mixtures, and what is wrong with them."""

from __future__ import annotations

import json
import re

import pytest
from conftest import ROOT
from training_data import turns

from videoxl.errors import DataError
from videoxl.train.data.records import read_records


def write(path, records) -> str:
    path.write_text(json.dumps(records))
    return str(path)


def texts(number: int, name: str = "r") -> list[dict]:
    return [{"id": f"{name}{i}", "conversations": turns("Say it.", str(i))} for i in range(number)]


def test_the_shipped_example_holds_every_kind():
    records = read_records(str(ROOT / "assets" / "train_example.json"))
    kinds = {(record.kind, len(record.media), len(record.conversations)) for record in records}
    assert kinds == {("image", 1, 1), ("image", 2, 1), ("video", 1, 1), ("video", 1, 2), ("text", 0, 1)}
    assert any(record.evidence for record in records)


def test_the_published_example_is_read(golden):
    records = read_records(str(golden / "train_example.json"))
    assert {record.kind for record in records} == {"image", "video"}


def test_patterns_and_folders(tmp_path):
    for name in "ab":
        write(
            tmp_path / f"part_{name}.json", [{"id": name, "image": "x.png", "conversations": turns("<image>\n?", "a")}]
        )
    records = read_records(f"{tmp_path}/part_{{a,b}}.json", image_folder="/pictures")
    assert [record.id for record in records] == ["a", "b"]
    assert str(records[0].media[0]) == "/pictures/x.png"
    assert read_records(f"{tmp_path}/part_{{a}}.json")[0].media[0] == tmp_path / "x.png"


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        ("all", 10),
        ("first:3", ["r0", "r1", "r2"]),
        ("end:2", ["r8", "r9"]),
        ("first:25%", 3),
        ("random:4", 4),
        ("end:0", 0),
    ],
)
def test_sampling_strategies_of_a_mixture(tmp_path, strategy, expected):
    write(tmp_path / "r.json", texts(10))
    write(tmp_path / "other.json", texts(1, "o"))
    mixture = tmp_path / "mix.yaml"
    mixture.write_text(
        f"datasets:\n  - json_path: r.json\n    sampling_strategy: {strategy}\n  - json_path: other.json\n"
    )
    ids = [record.id for record in read_records(str(mixture))]
    assert ids[-1] == "o0"
    assert len(ids) - 1 == expected if isinstance(expected, int) else ids[:-1] == expected
    assert ids == [record.id for record in read_records(str(mixture))]  # the same every time


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"conversations": turns("a", "b")[::-1]}, "no answer to learn"),
        ({"conversations": [turns("a", "b")[0]] * 2}, "roles must alternate"),
        ({"image": "x.png", "conversations": turns("<image><image>\na", "b")}, "2 <image>, and it names 1 image"),
        ({"image": "x.png", "conversations": turns("a", "b")}, "0 <image>, and it names 1 image"),
        ({"image": "x.png", "video": "y.mp4", "conversations": turns("<image>", "b")}, "both"),
        ({"image": 3, "conversations": turns("<image>", "b")}, "must be a path"),
        ({"conversations": "hello"}, "no `conversations`"),
        ({"conversations": turns("a", "b"), "evidence": [3]}, "evidence"),
        ("hello", "not an object"),
    ],
)
def test_malformed_records_are_named(tmp_path, record, message):
    good = {"id": "good", "conversations": turns("a", "b")}
    records = read_records(write(tmp_path / "r.json", [good, record]))
    assert [each.id for each in records] == ["good"]
    ((name, reason),) = records.malformed
    assert name == "1" and "record '1'" in reason and re.search(message, reason)
    with pytest.raises(DataError, match=message):
        read_records(write(tmp_path / "r.json", [record]))


def test_ids_that_repeat_are_told_apart(tmp_path):
    same = {"id": "a", "conversations": turns("a", "b")}
    records = read_records(write(tmp_path / "r.json", [same, same, {"id": "a"}, same]))
    assert [record.id for record in records] == ["a", "a (2)", "a (4)"]
    assert [name for name, _ in records.malformed] == ["a (3)"]
    names = ["a", "a (2)", "a"]
    records = read_records(write(tmp_path / "r.json", [{**same, "id": name} for name in names]))
    assert len({record.id for record in records}) == 3


def test_keys_that_are_not_used_are_named_once_with_the_nearest_known_one(tmp_path):
    spoken = turns("a", "b")
    content = [{"conversations": spoken, "evidnce": [], "weight": 2, "source": "x"}] * 3
    notes = read_records(write(tmp_path / "r.json", content)).notes
    assert len(notes) == 2
    assert "3 record(s)" in notes[0] and "'evidnce', which is not used; did you mean evidence?" in notes[0]
    assert "'weight', which is not used" in notes[1] and "did you mean" not in notes[1]


def test_a_mistyped_video_is_no_text_sample(tmp_path):
    content = [{"conversations": turns("a", "b")}, {"vidoe": "x.mp4", "conversations": turns("<image>\na", "b")}]
    records = read_records(write(tmp_path / "r.json", content))
    assert len(records) == 1 and "did you mean video?" in records.malformed[0][1]


def test_a_first_gpt_turn_is_dropped(tmp_path):
    spoken = [{"from": "gpt", "value": "Hello."}, *turns("a", "b")]
    record = read_records(write(tmp_path / "r.json", [{"conversations": spoken}]))[0]
    assert [turn["value"] for turn in record.conversations[0]] == ["a", "b"]


def test_stage_one_takes_captions_alone(tmp_path):
    path = write(tmp_path / "r.json", [{"image": "x.png", "conversations": turns("<image>", "b") * 2}])
    with pytest.raises(DataError, match="plain record"):
        read_records(path, version="plain")


@pytest.mark.parametrize(
    ("content", "message"),
    [("{}", "must be a list"), ("[", "not valid JSON"), ("[]", "holds no records"), (None, "no such file")],
)
def test_files_that_are_no_lists_of_records(tmp_path, content, message):
    path = tmp_path / "r.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError, match=message):
        read_records(str(path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("datasets: 3", "needs a list"),
        ("a: [", "cannot read"),
        ("datasets:\n  - json_path: r.json\n    sampling_strategy: best:3", "not known"),
    ],
)
def test_mixtures_that_are_none(tmp_path, content, message):
    write(tmp_path / "r.json", texts(2))
    (tmp_path / "mix.yaml").write_text(content)
    with pytest.raises(DataError, match=message):
        read_records(str(tmp_path / "mix.yaml"))
