"""A model is chosen by validation scores alone, each task counted once."""

import json

import pytest

from videoxl.errors import DataError
from videoxl.synth.choose import best_run, main, mean_score, task_scores
from videoxl.synth.testset import TestSet


def cell(task, right, frames=64, world="validation"):
    return {"task": task, "frames": frames, "ratio": 8, "right": right, "total": 100, "world": world}


def test_each_task_counts_once_however_many_lengths_it_has():
    cells = [cell("needle", 100), cell("needle", 90, 256), cell("ordering", 45)]
    assert task_scores(cells) == {"needle": pytest.approx(0.95), "ordering": pytest.approx(0.45)}
    assert mean_score(cells) == pytest.approx(0.7)


def test_a_model_that_orders_wins_over_one_that_finds_a_needle_more():
    finder = [cell("needle", 99), cell("ordering", 27)]
    orderer = [cell("needle", 98), cell("ordering", 81)]
    assert best_run({"finder": finder, "orderer": orderer}) == "orderer"


def test_scores_of_tests_and_unlike_cells_choose_nothing():
    with pytest.raises(DataError, match="test world cannot choose"):
        mean_score([cell("needle", 99, world="test")])
    with pytest.raises(DataError, match="b was scored on other cells than a"):
        best_run({"a": [cell("needle", 9)], "b": [cell("needle", 9, 128)]})
    with pytest.raises(DataError, match="no validation scores"):
        mean_score([])


def test_the_program_names_the_best_run(tmp_path, capsys):
    for name, right in (("one", 30), ("two", 60)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "validation.json").write_text(json.dumps({"cells": [cell("counting", right)]}))
    main([str(tmp_path / "one"), str(tmp_path / "two")])
    assert capsys.readouterr().out.splitlines()[-1] == f"best: {tmp_path / 'two'}"


def test_validation_videos_are_not_those_of_the_test():
    """Other cards, other draws, and no family of scenes that only tests have."""
    validation, test = (TestSet("needle", 30, 8, 56, world=world) for world in ("validation", "test"))
    facts = [{each[index].facts["family"] for index in range(30)} for each in (validation, test)]
    answers = [{each[index].questions[0].text for index in range(30)} for each in (validation, test)]
    assert not answers[0] & answers[1] and facts[0] <= facts[1]
