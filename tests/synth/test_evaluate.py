"""Scores: resumed where they belong, refused where they do not."""

import json

import pytest

from videoxl.errors import DataError
from videoxl.synth import evaluate as module
from videoxl.synth.evaluate import Scores, evaluate, main


def score(base, path, **changes):
    scores = Scores(path, {"model": base.name})
    asked = {"task": "needle", "frames": [8], "ratios": [8], "samples": 5, "device": "cpu"} | changes
    evaluate(base, scores, **asked)
    return scores.cells


def test_a_finished_cell_is_not_scored_again_and_another_test_is(small_base, tmp_path, monkeypatch):
    path = tmp_path / "scores.json"
    assert len(score(small_base, path)) == 1
    with monkeypatch.context() as patch:
        patch.setattr(module, "encode", lambda *_: pytest.fail("scored again"))
        assert len(score(small_base, path)) == 1
    for number, changes in enumerate(({"seed": 1}, {"files": 5}, {"samples": 6}, {"part": (1, 2)}), start=2):
        assert len(score(small_base, path, **changes)) == number


def test_scores_of_another_model_are_not_mixed_in(small_base, tmp_path, capsys):
    path = tmp_path / "scores.json"
    Scores(path, {"model": "other"}).add({"task": "needle"})
    before = path.read_text()
    assert main([str(small_base), "--output", str(path)]) == 2
    assert "name another file" in capsys.readouterr().err and path.read_text() == before


@pytest.mark.parametrize("text", ["", "{}", "[1]"])
def test_a_file_that_holds_no_scores_is_refused(tmp_path, text):
    (tmp_path / "notes.json").write_text(text)
    with pytest.raises(DataError, match="no file of scores"):
        Scores(tmp_path / "notes.json", {})


@pytest.mark.parametrize(
    "changes",
    [{"frames": [0]}, {"samples": 0}, {"part": (2, 2)}, {"ratios": [7], "reductions": ("drop",)}],
    ids=["frames", "samples", "part", "ratio"],
)
def test_numbers_that_make_no_test_are_refused(small_base, tmp_path, changes):
    with pytest.raises(DataError):
        score(small_base, tmp_path / "scores.json", **changes)


def test_without_videos_nothing_is_encoded(small_base, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "encode", lambda *_: pytest.fail("encoded"))
    (cell,) = score(small_base, tmp_path / "scores.json", reductions=("no video",))
    assert cell["total"] == 5 and json.loads((tmp_path / "scores.json").read_text())["cells"] == [cell]


def test_processes_that_make_up_videos_change_no_score_and_none_is_idle(small_base, tmp_path, monkeypatch):
    started, whole = [], module.DataLoader

    def loader(*args, num_workers, **kwargs):
        started.append(num_workers)
        return whole(*args, num_workers=num_workers, **kwargs)

    monkeypatch.setattr(module, "DataLoader", loader)
    cells = []
    for workers, samples in ((0, 6), (2, 6), (8, 3)):
        cells += score(small_base, tmp_path / f"{workers}.json", workers=workers, samples=samples)
    assert started == [0, 2, 3]
    for cell in cells:  # answers of a random model may change with the rows of a batch, and say nothing
        cell["wrong"] = [{name: value for name, value in wrong.items() if name != "given"} for wrong in cell["wrong"]]
    one, two = ({name: cell[name] for name in ("right", "tries_right", "total", "by", "wrong")} for cell in cells[:2])
    assert one == two and one["wrong"]
