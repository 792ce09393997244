"""Needle in a haystack: the published grid, cells equal to whole prompts, resumable results, pictures."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image
from programs import call
from videos import write_video as write_numbered

from videoxl.benchmarks.asking import Reading, load_asker
from videoxl.benchmarks.niah.grid import Cell, check_grid, insertion_index, spread
from videoxl.benchmarks.niah.haystack import FileHaystack
from videoxl.benchmarks.niah.needles import Needle, load_needles
from videoxl.benchmarks.niah.plot import describe, load_results, report, summarise
from videoxl.benchmarks.niah.run import main, parse
from videoxl.benchmarks.niah.runner import ColumnRunner, place
from videoxl.chat import text_ids
from videoxl.errors import ArgumentError, DataError, VideoError
from videoxl.media.choice import FrameChoice
from videoxl.media.pixels import VideoXLImageProcessor
from videoxl.media.stream import open_video
from videoxl.synth.haystack import GeneratedHaystack
from videoxl.synth.niah_data import main as make_data
from videoxl.synth.niah_data import write_needles
from videoxl.utils.processes import Processes
from videoxl.utils.resources import resource

DATA = resource("NIAH/datas")
LENGTHS = [1, 187, 373, 559, 745, 931, 1118, 1304, 1490, 1676, 1862, 2048]
DEPTHS = [0, 25, 50, 75, 100]


# -- the grid --------------------------------------------------------------------------------------------------------


def test_the_published_grid_is_the_default():
    given = parse(["--model_path", "m", "--result_dir", "r"])
    names = ("min", "max", "num_intervals")
    assert spread(*(getattr(given, f"context_lengths_{name}") for name in names)) == LENGTHS
    assert spread(given.video_depth_percent_min, given.video_depth_percent_max, 5) == DEPTHS
    assert (given.ratio, given.needles_at_once) == (16, 1)
    assert len(load_needles(given.needle_qa_path, given.needle_dir)) == 5
    assert [insertion_index(187, depth) for depth in DEPTHS] == [0, 46, 93, 140, 187]
    name = Cell(187, 25).path(Path("r"), "m").name
    assert name == "m_modality_image_len_187_depth_25_results.json"


@pytest.mark.parametrize("lengths, depths", [([0], [0]), ([1], [101]), ([1], [-1]), ([], [0])])
def test_a_grid_that_cannot_be_is_refused(lengths, depths):
    with pytest.raises(ArgumentError):
        check_grid(lengths, depths)


def test_each_needle_is_asked_for_once_a_cell_at_its_depth():
    placings = place(100, 25, 5, 1)
    assert [placing.inserts for placing in placings] == [((25, number),) for number in range(5)]
    several = place(100, 25, 5, 3)
    for number, placing in enumerate(several):
        assert placing.asked == number and (25, number) in placing.inserts and len(placing.inserts) == 3
        assert len({needle for _, needle in placing.inserts}) == 3
        assert [index for index, _ in placing.inserts] == sorted(index for index, _ in placing.inserts)


@pytest.mark.parametrize(
    "response, found", [("D) reading", True), ("D", True), ("A) D", False), ("", False), ("the answer is D) x", True)]
)
def test_the_answer_counts_before_the_first_parenthesis(response, found):
    assert Needle("q", "D", Path("p")).is_found(response) == found


# -- needles and haystacks -------------------------------------------------------------------------------------------


def test_the_bundled_needles_are_made_by_their_program(tmp_path, capsys):
    write_needles(tmp_path)
    for path in sorted(DATA.rglob("*.*")):
        again = tmp_path / path.relative_to(DATA)
        if path.suffix == ".png":
            assert np.array_equal(np.asarray(Image.open(path)), np.asarray(Image.open(again)))
        else:
            assert path.read_text() == again.read_text()
    assert make_data(["needles", str(tmp_path)]) == 2 and "--force" in capsys.readouterr().err


def test_no_letter_and_no_other_needle_is_right_by_itself():
    """Answers are spread over the letters; with several needles in one video a question still has one right option."""
    needles = load_needles(DATA / "qa" / "qa.json", DATA / "needles")
    assert [needle.answer for needle in needles] == list("ABCDA")
    names = [needle.picture.stem.replace("_", " ") for needle in needles]
    for name, needle in zip(names, needles):
        assert not any(f") {other}" in needle.question for other in names if other != name)


@pytest.mark.parametrize("damage", ["absent", "no json", "no list", "unequal", "no text", "no picture"])
def test_needles_that_are_not_there_or_do_not_fit_are_named(tmp_path, damage):
    write_needles(tmp_path)
    questions, pictures = tmp_path / "qa" / "qa.json", tmp_path / "needles"
    stored = json.loads(questions.read_text())
    if damage == "no list":
        del stored["answer"]
    elif damage == "unequal":
        stored["answer"].pop()
    elif damage == "no text":
        stored["answer"][1] = ""
    elif damage == "no picture":
        (pictures / stored["needle"][2]).unlink()
    questions.write_text("{" if damage == "no json" else json.dumps(stored))
    said = {
        "no text": "where a text must",
        "no list": "answer",
        "unequal": "equally long",
        "no picture": stored["needle"][2],
        "no json": "no JSON",
    }
    path = tmp_path / "none.json" if damage == "absent" else questions
    with pytest.raises(DataError, match=said.get(damage, "cannot read")):
        load_needles(path, pictures)


def test_the_generated_haystack_is_one_video_however_closely_it_is_looked_at():
    processor = VideoXLImageProcessor(56)
    haystack = GeneratedHaystack(seed=1, seconds=120)
    everything = torch.cat(list(haystack.chunks(120, processor)))
    some = torch.cat(list(haystack.chunks(7, processor)))
    assert everything.shape == (120, 56, 56, 3)
    assert torch.equal(some, everything[np.linspace(0, 119, 7, dtype=int)])
    other = torch.cat(list(GeneratedHaystack(seed=2, seconds=120).chunks(7, processor)))
    assert not torch.equal(some, other)
    with pytest.raises(VideoError, match="--haystack_seconds"):
        next(haystack.chunks(121, processor))


def test_a_haystack_file_shows_the_generated_frames(tmp_path):
    path = tmp_path / "hay.mp4"
    assert make_data(["haystack", str(path), "--seconds", "30", "--seed", "1"]) == 0
    read = torch.cat(list(FileHaystack(path).chunks(10, VideoXLImageProcessor(336))))
    drawn = torch.cat(list(GeneratedHaystack(1, 30).chunks(10, VideoXLImageProcessor(336))))
    assert (read.float() - drawn.float()).abs().mean(dim=(1, 2, 3)).max() < 8
    with pytest.raises(VideoError, match="has 30 frames"):
        next(FileHaystack(path).chunks(31, VideoXLImageProcessor(336)))
    with pytest.raises(VideoError, match="no such haystack"):
        FileHaystack(tmp_path / "none.mp4")
    assert make_data(["haystack", str(path)]) == 2


# -- cells -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def asker(small_base):
    return load_asker(small_base, Reading(FrameChoice(1), 8), 0.0, "cpu")


@pytest.mark.parametrize("at_once, batch", [(1, 1), (3, 2)])
@pytest.mark.parametrize("from_file", [False, True])
def test_a_column_gives_what_whole_prompts_give(asker, tmp_path, at_once, batch, from_file):
    """Forks at the needle against one `generate` a needle over all frames."""
    length, depths = 23, [0, 50, 100]
    needles = load_needles(DATA / "qa" / "qa.json", DATA / "needles")[:3]
    processor = asker.session.image_processor
    if from_file:
        path = write_numbered(tmp_path / "hay.mp4", 50)
        haystack = FileHaystack(path)
        with open_video(str(path), processor, FrameChoice(num_frames=length)) as stream:
            frames = torch.cat([torch.from_numpy(chunk.frames) for chunk in stream])
    else:
        haystack = GeneratedHaystack(3, 60)
        frames = torch.cat(list(haystack.chunks(length, processor)))
    runner = ColumnRunner(asker, haystack, needles, at_once, max_new_tokens=6, batch=batch)
    answered = []
    cells = list(runner.run(length, depths, answered.append))
    assert [cell for cell, _ in cells] == [Cell(length, depth) for depth in depths] and len(answered) == 9
    for cell, result in cells:
        for placing, response in zip(place(length, cell.depth, 3, at_once), result["model_response"]):
            shown, read = [], 0
            for index, number in placing.inserts:
                shown += [frames[read:index], needles[number].pixels(processor)]
                read = index
            pixels = processor.normalize(torch.cat([*shown, frames[read:]]), torch.float32)
            assert len(pixels) == length + at_once
            prompt, session = needles[placing.asked].prompt, asker.session
            memory = session.model.summarize(pixels, text_ids(session.tokenizer, prompt.prefix), ratio=8)
            assert session.ask(memory, prompt, max_new_tokens=6).text == response
        found = [needle.is_found(text) for needle, text in zip(needles, result["model_response"])]
        assert result["score"] == sum(found) / 3 and result["insert_index"] == insertion_index(length, cell.depth)


# -- whole runs ------------------------------------------------------------------------------------------------------

GRID = ("--context_lengths", "4", "12", "--video_depth_percents", "0", "50", "100")


def flags(model, results, *more):
    return ["--model_path", str(model), "--result_dir", str(results), "--ratio", "8",
            "--haystack_seconds", "100", "--max_new_tokens", "6", "--device", "cpu", *GRID,
            *map(str, more)]  # fmt: skip


def start(model, results, launch=(), **kwargs):
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *launch, "-m", "NIAH.run", *flags(model, results)]
    return subprocess.Popen(command, env=environment, text=True, **kwargs)


def responses(folder):
    return {
        (result["context_length"], result["depth_percent"]): result["model_response"] for result in load_results(folder)
    }


@pytest.fixture(scope="module")
def whole(small_base, tmp_path_factory):
    results = tmp_path_factory.mktemp("niah")
    done = call(main, *flags(small_base, results))
    assert done.returncode == 0, done.stderr[-3000:]
    return results / small_base.name, done


def test_every_cell_runs_and_has_the_published_keys(whole):
    folder, done = whole
    found = load_results(folder)
    assert [(r["context_length"], r["depth_percent"]) for r in found] == [(n, d) for n in (4, 12) for d in (0, 50, 100)]
    keys = {"model", "retrieval_question", "answer", "context_length", "depth_percent", "needle", "model_response",
            "score", "test_duration_seconds", "test_timestamp_utc"}  # fmt: skip
    for result in found:
        assert keys <= set(result) and len(result["model_response"]) == 5 and result["beacon_ratio"] == 8
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["cells"] == 6 and summary["generations"] == 30
    assert summary["score"] == pytest.approx(np.mean([r["score"] for r in found]))
    assert list(summary["by_length"]) == ["4", "12"] and list(summary["by_depth"]) == ["0", "50", "100"]
    picture = Image.open(folder / "heatmap.png")
    assert picture.width > 400 and len(picture.convert("RGB").getcolors(1 << 20)) > 20
    assert "all" in done.stdout and "(30 answers)" in done.stdout


def test_a_run_goes_on_with_the_cells_that_are_missing(small_base, whole, tmp_path):
    folder = tmp_path / small_base.name
    shutil.copytree(whole[0], folder)
    kept = sorted(folder.glob("*_results.json"))
    for path in kept[::2]:
        path.unlink()
    before = {path: path.stat().st_mtime_ns for path in kept[1::2]}
    assert call(main, *flags(small_base, tmp_path)).returncode == 0
    assert {path: path.stat().st_mtime_ns for path in kept[1::2]} == before
    assert responses(folder) == responses(whole[0])


@pytest.mark.slow
def test_a_killed_run_goes_on_cell_by_cell(small_base, whole, tmp_path):
    """Killed at the first cell; the program under its published path goes on."""
    folder = tmp_path / small_base.name
    process = start(small_base, tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and not list(folder.glob("*_results.json")):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = {path: path.stat().st_mtime_ns for path in folder.glob("*_results.json")}
    assert kept
    again = start(small_base, tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    _, said = again.communicate(timeout=600)
    assert again.returncode == 0, said[-3000:]
    assert all(path.stat().st_mtime_ns == written for path, written in kept.items())
    assert responses(folder) == responses(whole[0])


def test_columns_are_shared_by_their_work():
    processes = Processes()
    shares = []
    for rank in range(3):
        processes.rank, processes.world_size = rank, 3
        shares.append(processes.share(LENGTHS, LENGTHS))
    assert sorted(length for share in shares for length in share) == LENGTHS
    sums = [sum(share) for share in shares]
    assert max(sums) < 1.1 * min(sums)


@pytest.mark.slow
def test_two_processes_share_the_columns(small_base, whole, tmp_path):
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    process = start(small_base, tmp_path, launch, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    printed, said = process.communicate(timeout=600)
    assert process.returncode == 0, said[-3000:]
    assert responses(tmp_path / small_base.name) == responses(whole[0])
    assert printed.count("(30 answers)") == 1


def test_results_of_another_run_are_neither_counted_nor_replaced(small_base, whole):
    before = {path: path.read_bytes() for path in whole[0].iterdir()}
    for more in (("--haystack_seed", "5"), ("--max_new_tokens", "7"), ("--ratio", "4")):
        done = call(main, *flags(small_base, whole[0].parent, *more))
        assert done.returncode == 2 and "another run" in done.stderr and "--result_dir" in done.stderr
    assert {path: path.read_bytes() for path in whole[0].iterdir()} == before


@pytest.mark.parametrize(
    "more, said",
    [
        (("--needle_dir", "/nowhere"), "needle pictures are not in"),
        (("--haystack_path", "/nowhere/film.mp4"), "no such haystack"),
        (("--needles_at_once", "6"), "there are 5 needles"),
        (("--batch_size", "0"), "must be at least 1"),
        (("--context_lengths", "101"), "--haystack_seconds"),
        (("--haystack_seed", "-1"), "seeds count from 0"),
        (("--model_name", "a/b"), "leave slashes out"),
    ],
)
def test_wrong_inputs_end_with_one_line(small_base, tmp_path, more, said):
    done = call(main, *flags(small_base, tmp_path, *more))
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr


def test_a_checkpoint_of_something_else_and_a_locked_folder_are_errors(small_base, tmp_path):
    done = call(main, *flags(tmp_path, tmp_path / "results"))
    assert done.returncode == 2 and "Video-XL checkpoint" in done.stderr
    (tmp_path / "file").write_text("")
    done = call(main, *flags(small_base, tmp_path / "file"))
    assert done.returncode == 2 and "name another folder" in done.stderr


def test_a_folder_without_results_says_so(tmp_path):
    with pytest.raises(DataError, match="no results"):
        report(tmp_path)
    (tmp_path / "x_results.json").write_text("{}")
    with pytest.raises(DataError, match=r"x_results\.json"):
        load_results(tmp_path)


def test_a_summary_in_lines():
    cells = [
        {"context_length": length, "depth_percent": depth, "score": score, "model_response": ["a"], "model": "m"}
        for (length, depth), score in {(9, 0.0): 1.0, (9, 50.0): 0.0, (10, 0.0): 1.0, (10, 50.0): 1.0}.items()
    ]
    summary = summarise(cells)
    assert summary["by_length"] == {"9": 0.5, "10": 1.0} and summary["by_depth"] == {"0": 1.0, "50": 0.5}
    assert describe(summary).endswith("all  0.750 (4 answers)")
