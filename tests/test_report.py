"""The report of the small model: tables from result files, and a document that does not drift from them."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT
from programs import call, main_of

SCRIPT = ROOT / "scripts" / "report.py"
MARKED = "# Title\n\n<!-- from here on written by scripts/report.py -->\nold\n<!-- up to here -->\n\nafter\n"


def report(*arguments):
    return call(main_of(SCRIPT), *arguments)


def test_the_documents_tables_are_those_of_the_result_files():
    done = report("--check")
    assert done.returncode == 0, done.stderr


@pytest.fixture
def made(tmp_path):
    results = tmp_path / "results"
    needles = results / "niah-r8" / "m"
    needles.mkdir(parents=True)
    cell = {"task": "needle", "reduction": "beacon", "frames": 64, "ratio": 8, "right": 9, "total": 10,
            "tries_right": 9, "tries": 10, "by": {"family": {"bars": [4, 5], "rings": [5, 5]}}}  # fmt: skip
    cells = [cell, {**cell, "frames": 4096, "right": 5}, {**cell, "reduction": "drop", "right": 4}]
    cells += [{**cell, "reduction": "drop", "ratio": 16, "right": 2}]
    cells += [{**cell, "reduction": "none", "ratio": 0, "right": 7}]
    cells.append({**cell, "task": "ordering", "right": 3, "tries_right": 25, "tries": 40})
    cells += [{**cell, "frames": 128, "right": right, "part": [part, 2]} for part, right in enumerate((6, 7))]
    (results / "tiny-bundle.json").write_text(json.dumps({"model": "m", "cells": cells}))
    types = {"ret_edit1": {"videos": 4, "accuracy": 0.75, "tries_right": 14, "tries": 16}}
    (results / "tiny-vnbench.score.json").write_text(json.dumps({"overall": 0.75, "types": types}))
    summary = {"model": "m", "beacon_ratio": 8, "score": 0.9, "generations": 20, "by_length": {"2048": 0.9}}
    (needles / "summary.json").write_text(json.dumps(summary))
    shutil.copy(ROOT / "docs" / "assets" / "window.png", needles / "heatmap.png")
    (tmp_path / "doc.md").write_text(MARKED)
    return results, tmp_path / "doc.md"


def test_every_kind_of_result_gets_its_table(made):
    results, document = made
    arguments = ("--results", results, "--document", document)
    assert report(*arguments, "--check").returncode == 1 and document.read_text() == MARKED
    assert report(*arguments).returncode == 0
    text = document.read_text()
    assert text.startswith("# Title") and text.endswith("after\n") and "old" not in text
    for line in (
        "| 64 | 9/10 = 0.900 (0.60 to 0.98) |",
        "| 4,096 | 5/10 = 0.500 (0.24 to 0.76) |",
        "| 64 | one token per group, the others dropped | 8 | 4/10 = 0.400 (0.17 to 0.69) |",
        "| 64 | one token per group, the others dropped | 16 | 2/10 = 0.200 (0.06 to 0.51) |",
        "| 64 | all (no compression) | - | 7/10 = 0.700 (0.40 to 0.89) |",
        "| ordering | 64 | 3/10 = 0.300 (0.11 to 0.60); 25/40 tries |",
        "| 128 | 13/20 = 0.650 (0.43 to 0.82) |",  # of two processes
        "| bars | 4/5 | 8/10 | 4/5 |",
        "| frames | m, ratio 8 |",
        "| 2,048 | 0.900 |",
        "![Needle accuracy by length and depth, m, ratio 8](results/niah-r8/m/heatmap.png)",
        "| ret_edit1 | 4 | 75.0% | 14/16 |",
    ):
        assert line in text, line
    assert report(*arguments, "--check").returncode == 0


def test_a_document_without_the_markers_is_left_alone(made, tmp_path):
    other = tmp_path / "other.md"
    other.write_text("mine")
    done = report("--results", made[0], "--document", other)
    assert done.returncode == 2 and other.read_text() == "mine"


@pytest.mark.slow
def test_what_measure_tiny_leaves_is_what_the_report_reads(small_base, tmp_path):
    """Every kind of score of a model without skill, as small as may be, and the tables that come of it."""
    results, document = tmp_path / "results", tmp_path / "doc.md"
    document.write_text(MARKED)
    given = {"SAMPLES": "5", "FILES": "2", "LENGTHS": "16 1", "WORKERS": "0", "RESULTS": str(results)}
    given |= {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    script = ["bash", str(ROOT / "scripts" / "measure_tiny.sh"), str(small_base), "bundle"]
    done = subprocess.run(
        script, env={**os.environ, **given, "PYTHON": sys.executable}, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    cells = json.loads((results / "tiny-bundle.json").read_text())["cells"]
    of_needles = [cell for cell in cells if cell["task"] == "needle" and cell["reduction"] == "beacon"]
    needles = {(cell["frames"], cell["ratio"]): cell for cell in of_needles}
    assert set(needles) == {(16, 8), (16, 16), (1, 8), (1, 16)}
    assert all(cell["total"] == 5 and cell["by"]["source"]["mp4"][1] == 2 for cell in of_needles)
    assert {cell["task"] for cell in cells} == {"needle", "ordering", "counting", "advertisement"}
    assert {cell["reduction"] for cell in cells} == {"beacon", "none", "drop", "mean", "no video"}
    assert report("--results", results, "--document", document).returncode == 0
    text = document.read_text()
    assert "| frames | videoxl-tiny, ratio 2 | videoxl-tiny, ratio 4 |" in text and "| cnt_edit2 | 1 |" in text
    assert "| advertisement | 16 |" in text and all(f"| 16 | group means | {ratio} |" in text for ratio in (8, 16))
