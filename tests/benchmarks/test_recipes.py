"""Recipes: each file is whole, names a task that lmms-eval has, and gives the published numbers."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from videoxl.benchmarks.recipes import load_recipe, main, read_score, recipe_names, verdict
from videoxl.errors import DataError

PUBLISHED = {
    "longvideobench_val_v": 49.5,
    "mlvu_dev": 64.9,
    "mlvu_test": 45.5,
    "videomme": 55.5,
    "videomme_w_subtitle": 61.0,
}


def test_there_is_a_recipe_for_every_published_score():
    assert recipe_names() == sorted(PUBLISHED)
    for name, score in PUBLISHED.items():
        recipe = load_recipe(name)
        assert (recipe.task, recipe.published) == (name, score)
        assert (recipe.max_frames_num, recipe.beacon_ratio) == (128, 8)


@pytest.mark.parametrize("name", PUBLISHED)
def test_its_task_and_metric_are_lmms_evals(name):
    lmms_eval = pytest.importorskip("lmms_eval", reason="lmms-eval is in the second environment (extra `eval`)")
    recipe = load_recipe(name)
    (folder,) = lmms_eval.__path__
    files = subprocess.run(
        ["grep", "-rlE", f"^task: {recipe.task}$", f"{folder}/tasks"], capture_output=True, text=True
    ).stdout.split()
    assert any(f"metric: {recipe.metric}" in Path(file).read_text() for file in files)


def test_the_script_starts_lmms_eval_by_the_recipe(tmp_path):
    command = ["bash", str(ROOT / "scripts" / "eval_lmms.sh"), "mlvu_dev", "weights", "--print", "--limit", "8"]
    done = subprocess.run(
        command, capture_output=True, text=True, env={"PYTHON": sys.executable, "PATH": "/usr/bin:/bin"}
    )
    assert done.returncode == 0, done.stderr
    for part in ("-m lmms_eval", "--tasks mlvu_dev", "pretrained=weights,max_frames_num=128,beacon_ratio=8,strict=True",
                 "--log_samples", "--limit 8"):  # fmt: skip
        assert part in done.stdout


def test_the_score_is_read_from_the_newest_results_in_per_cent(tmp_path):
    recipe = load_recipe("longvideobench_val_v")
    with pytest.raises(DataError, match="left no results"):
        read_score(tmp_path, recipe)
    folder = tmp_path / "model"
    folder.mkdir()
    path = folder / "1_results.json"
    path.write_text(json.dumps({"results": {recipe.task: {"lvb_acc,none": 0.495}}}))
    assert read_score(tmp_path, recipe) == (pytest.approx(49.5), None)
    counted = {"results": {recipe.task: {"lvb_acc,none": 0.495}}, "n-samples": {recipe.task: {"effective": 1337}}}
    path.write_text(json.dumps(counted))
    assert read_score(tmp_path, recipe) == (pytest.approx(49.5), 1337)
    for odd in ("[]", "{", '{"results": 3}', '{"results": {"longvideobench_val_v": {"lvb_acc,none": "N/A"}}}'):
        path.write_text(odd)
        with pytest.raises(DataError):
            read_score(tmp_path, recipe)
    path.write_text(json.dumps({"results": {recipe.task: {"other,none": 1}}}))
    with pytest.raises(DataError, match="no lvb_acc"):
        read_score(tmp_path, recipe)


def test_unknown_recipes_and_folders_that_are_no_checkpoint_are_errors(tmp_path, capsys):
    assert main(["mmmu", "weights"]) == 2 and "there are longvideobench_val_v, mlvu_dev" in capsys.readouterr().err
    assert main(["videomme", str(tmp_path)]) == 2 and "not a checkpoint" in capsys.readouterr().err
    (tmp_path / "odd.yaml").write_text("task: x\n")
    with pytest.raises(DataError, match="no recipe"):
        load_recipe("odd", tmp_path)


def test_a_score_is_compared_only_where_it_can_be():
    recipe = load_recipe("mlvu_dev")
    said = verdict(recipe, 64.0, 500, 0, ["--log_samples"])
    assert "64.0 of 500 questions (95 %: 59.8 to 68.2)" in said and said.endswith("within 1.5 points")
    assert verdict(recipe, 60.0, 500, 0, []).endswith("not within 1.5 points")
    assert "64.0; the published" in verdict(recipe, 64.0, None, 0, [])
    for status, more, why in (
        (1, [], "could not be read"), (2, [], "status 2"), (0, ["--limit", "8"], "--limit departs"),
        (0, ["--model_args=pretrained=x"], "departs"), (0, ["--gen_kwargs", "a=1"], "departs"),
        (0, ["--lim", "10"], "--lim departs"),
    ):  # fmt: skip
        said = verdict(recipe, 64.0, 500, status, more)
        assert "not compared" in said and why in said and "within" not in said


def test_a_number_of_processes_that_is_none_is_named(tmp_path, capsys, monkeypatch):
    for odd in ("abc", "0", "-1", "", "\u00b2"):
        monkeypatch.setenv("PROCESSES", odd)
        assert main(["videomme", str(tmp_path), "--print"]) == 2
        assert "PROCESSES is" in capsys.readouterr().err
