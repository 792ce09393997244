"""Pages for readers: generated ones are current, code in them runs, the site builds, versions agree."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT, SAMPLE

sys.path.insert(0, str(ROOT / "scripts"))

import check_version
import reference

GUIDES = ROOT / "docs" / "how-to"


def python_blocks(page):
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.S)


@pytest.mark.parametrize("page", sorted(reference.PAGES))
def test_generated_pages_say_what_the_code_says(page):
    assert (reference.FOLDER / page).read_text() == reference.PAGES[page](), "run scripts/reference.py"


def test_the_readme_is_short_and_opens_with_one_command_and_one_small_block():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 130
    blocks = re.findall(r"```python\n(.*?)```", text, re.S)
    assert len(blocks) == 1 and len(blocks[0].strip().splitlines()) <= 8
    assert text.index("![") < text.index("```bash") < text.index("```python")


def test_every_option_of_ask_is_in_the_reference():
    page = (reference.FOLDER / "command-line.md").read_text()
    section = page[page.index("## videoxl ask") : page.index("## videoxl summarize")]
    for option in ("--frames", "--ratio", "--compressor", "--stream", "--json", "--seed"):
        row = next(line for line in section.splitlines() if line.startswith(f"| `{option}`"))
        assert len(row.split("|")[3].strip()) > 10


def test_the_guide_to_compressors_runs(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    scope: dict = {}
    for block in python_blocks(GUIDES / "add-a-compressor.md"):
        exec(compile(block, "add-a-compressor.md", "exec"), scope)
    assert capsys.readouterr().out.strip()
    from videoxl.compression import get_compressor

    assert get_compressor("strongest").name == "strongest"


def test_the_guide_to_towers_makes_a_tower():
    import torch

    scope: dict = {"__name__": "guide"}
    for block in python_blocks(GUIDES / "add-a-tower.md"):
        exec(compile(block, "add-a-tower.md", "exec"), scope)
    from videoxl.model.configuration import VideoXLConfig
    from videoxl.model.towers import build_vision_tower

    tower = build_vision_tower(VideoXLConfig(mm_vision_tower="flat:56", mm_hidden_size=24))
    assert tower(torch.rand(2, 3, 56, 56)).shape == (2, 16, 24)


def test_the_guide_to_video_decoders_makes_one(tmp_path, monkeypatch):
    """In a module of its own: the decoder process imports it by name."""
    (tmp_path / "plain_decoder.py").write_text(python_blocks(GUIDES / "add-a-decoder.md")[0])
    monkeypatch.syspath_prepend(tmp_path)
    import plain_decoder

    from videoxl.media.index import index_video

    index = index_video(str(SAMPLE))
    frames = dict(plain_decoder.Plain().frames(index, [0, 3]))
    assert set(frames) == {0, 3} and frames[0].ndim == 3 and str(frames[0].dtype) == "uint8"


def test_the_guide_to_benchmarks_runs(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    for block in python_blocks(GUIDES / "add-a-benchmark.md"):
        exec(compile(block, "add-a-benchmark.md", "exec"), {})
    assert len(capsys.readouterr().out.strip().splitlines()) == 2


def test_version_and_changelog_agree_and_a_wrong_tag_is_named():
    assert check_version.main([]) == 0
    assert check_version.problems("1.2.0", "## Unreleased\n## 1.1.0\n", "v1.1.0") == [
        "version is 1.2.0, the newest section of CHANGELOG.md is 1.1.0",
        "tag is v1.1.0, version is 1.2.0; tag v1.2.0",
    ]


def test_the_workflow_runs_the_gate():
    import yaml

    for name in ("gate", "release"):
        steps = yaml.safe_load((ROOT / ".github" / "workflows" / f"{name}.yml").read_text())["jobs"][name]["steps"]
        assert any(step.get("run") == "bash .ci/run" for step in steps)


@pytest.mark.slow
def test_the_example_notebook_runs(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    cells = json.loads((ROOT / "examples" / "first_answer.ipynb").read_text())["cells"]
    scope: dict = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), "first_answer.ipynb", "exec"), scope)
    assert scope["answer"].text and capsys.readouterr().out.strip()


@pytest.mark.slow
def test_the_site_builds_and_every_link_leads_somewhere(tmp_path):
    pytest.importorskip("material")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"],
        cwd=ROOT, capture_output=True, text=True, timeout=300, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "site" / "reference" / "python" / "index.html").is_file()
