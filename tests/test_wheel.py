"""An installed wheel in an empty folder, without the checkout: the bundled model answers, programs find their data."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT

pytestmark = pytest.mark.slow


def run(*command, cwd, **environment) -> subprocess.CompletedProcess:
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIDEOXL"))}
    return subprocess.run(
        list(map(str, command)), capture_output=True, text=True, cwd=cwd, env=clean | environment, timeout=600
    )


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> tuple[Path, Path, Path]:
    """(the environment's programs, an empty folder, the wheel). What the wheel depends on is this environment's."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    done = run(*pip, "wheel", "--no-deps", "-q", "-w", folder, ROOT, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    (wheel,) = folder.glob("videoxl-*.whl")
    venv = folder / "venv"
    assert run(sys.executable, "-m", "venv", venv, cwd=folder).returncode == 0
    # Everything but this project: its libraries are here already, and a gigabyte once more would show nothing.
    (site,) = (venv / "lib").glob("python*/site-packages")
    here = next(path for path in sys.path if path.endswith("site-packages"))
    (site / "libraries.pth").write_text(f"{here}\n")
    done = run(
        venv / "bin" / "python", "-m", "pip", "install", "-q", "--no-deps", "--force-reinstall", wheel, cwd=folder
    )
    assert done.returncode == 0, done.stderr[-3000:]
    empty = folder / "empty"
    empty.mkdir()
    return venv / "bin", empty, wheel


def test_it_holds_what_the_package_needs(installed):
    names = zipfile.ZipFile(installed[2]).namelist()
    for name in ("py.typed", "_data/assets/sample.mp4", "_data/assets/videoxl-tiny/model.safetensors",
                 "_data/configs/eval/videomme.yaml", "_data/configs/qwen2-7b.json",
                 "_data/configs/deepspeed/zero3.json", "_data/NIAH/datas/qa/qa.json"):  # fmt: skip
        assert f"videoxl/{name}" in names
    assert not [name for name in names if name.startswith(("tests/", "docs/"))]
    assert installed[2].stat().st_size < 20_000_000


def test_the_sample_is_asked_in_an_empty_folder(installed):
    programs, empty, _ = installed
    where = run(programs / "python", "-c", "import videoxl; print(videoxl.__file__)", cwd=empty)
    assert str(programs.parent) in where.stdout, where.stdout + where.stderr
    find = "from videoxl.utils.resources import resource; print(resource('assets/sample.mp4'))"
    sample = run(programs / "python", "-c", find, cwd=empty).stdout.strip()
    assert str(programs.parent) in sample
    question = "Does this video contain any inserted advertisement? If yes, which is the content of the ad?"
    done = run(programs / "videoxl", "ask", sample, question, "--frames", "64", "--device", "cpu", cwd=empty)
    assert done.returncode == 0 and done.stdout.startswith("Yes, a blue star."), done.stderr[-2000:]


def test_programs_find_their_recipes_configurations_and_data(installed):
    programs, empty, _ = installed
    niah = run(
        programs / "videoxl-niah", "--model_path", empty, "--result_dir", empty / "r", "--device", "cpu", cwd=empty
    )
    assert niah.returncode == 2 and "is no checkpoint" in niah.stderr  # it has read its needles by then
    for program in ("videoxl-niah", "videoxl-vnbench", "videoxl-train"):
        assert run(programs / program, "--help", cwd=empty).returncode == 0, program
    script = (
        "from videoxl.benchmarks.recipes import recipe_names; from videoxl.train.compat.legacy_flags import translate;"
        "from videoxl.train.data.sources import find_source; from videoxl.train.tasks import task_names;"
        "print(len(recipe_names()), translate(['--deepspeed', 'scripts/zero3.json'], {'deepspeed'})[0][1]);"
        "print(type(find_source('synth:cpu/words')).__name__, len(task_names()))"
    )
    done = run(programs / "python", "-c", script, cwd=empty)
    first, second = done.stdout.splitlines()
    assert first.startswith("5 ") and first.endswith("zero3.json") and str(programs.parent) in first, done.stderr
    assert second == "SyntheticSource 4"


def test_help_is_told_within_half_a_second(installed):
    programs, empty, _ = installed
    run(programs / "videoxl", "--help", cwd=empty)  # bytecode is written
    started = time.perf_counter()
    done = run(programs / "videoxl", "--help", cwd=empty)
    assert done.returncode == 0 and "summarize" in done.stdout
    assert time.perf_counter() - started < 0.5
