"""VNBench: the benchmark's own score, annotations that are checked, answers that survive a kill."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT
from programs import call, main_of
from videos import cut

from videoxl.benchmarks.vnbench import TYPES, check_videos, extract, load_examples
from videoxl.benchmarks.vnbench_score import as_json, printed, score_file, table
from videoxl.errors import DataError
from videoxl.synth.testset import TRIES
from videoxl.synth.vnbench import main as make_bench
from videoxl.synth.vnbench import write_bench
from videoxl.utils.json_lines import append_row, read_rows

SCRIPT = ROOT / "eval" / "eval_vnbench.py"
main = main_of(SCRIPT)
ENTRY = {
    "video": "a/b/one.mp4",
    "question": "Which?",
    "options": ["a", "b", "c", "d"],
    "gt": "c",
    "type": "ret_edit1",
    "try": 2,
}


def run(*arguments, launch=(), **kwargs):
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, *launch, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, **kwargs)


# -- the score -----------------------------------------------------------------------------------------------------


def test_the_score_is_printed_as_vnbenchs_own_scorer_prints_it(golden, tmp_path):
    copy = tmp_path / "vnbench.jsonl"
    copy.write_bytes((golden / "vnbench_submission.jsonl").read_bytes())
    done = call(main, "--score", copy)
    assert done.returncode == 0, done.stderr
    assert done.stdout == (golden / "vnbench_submission.expected.txt").read_text()
    stored = json.loads((tmp_path / "vnbench.score.json").read_text())
    assert stored["overall"] == pytest.approx(0.537037037037037)
    assert stored["types"]["ret_edit1"]["videos_right"] == 7 and stored["types"]["ret_edit1"]["videos"] == 12
    assert "retrieval" in done.stderr and "53.7%" in done.stderr


def answers(pred, gt="B", **changes):
    row = {"question_id": "v_0", "pred": pred, "gt": gt, "type": "ret_edit1", "try": 0} | changes
    return [{**row, "question_id": f"v_{number}"} for number in range(TRIES)]


@pytest.mark.parametrize(
    "pred, gt, right",
    [
        ("B", "B", 1),
        ("(B) text", 1, 1),
        ("B. A thing", "B", 1),
        ("BC", "B", 1),
        ("b", "B", 0),
        ("AB", "B", 0),
        ("", "B", 0),
    ],
)
def test_the_first_letter_in_the_order_of_the_alphabet_counts(tmp_path, pred, gt, right):
    for row in answers(pred, gt):
        append_row(tmp_path / "s.jsonl", row)
    assert score_file(tmp_path / "s.jsonl")["ret_edit1"].videos_right == right


def test_a_video_needs_all_four_tries_and_a_missing_answer_is_none(tmp_path):
    rows = [*answers("B")[:3], {**answers("B")[3], "pred": None}]
    for row in rows:
        append_row(tmp_path / "s.jsonl", row)
    (score,) = score_file(tmp_path / "s.jsonl").values()
    assert (score.videos_right, score.videos, score.tries_right) == (0, 1, 3)
    assert as_json({"ret_edit1": score})["retrieval"] == 0.0 and "0.0%" in table({"ret_edit1": score})
    assert printed({"ret_edit1": score}).startswith("ret_edit1\ntrue: 0, total: 1, acc: 0.0\nOverall:  0.0")


@pytest.mark.parametrize(
    "row, said",
    [
        ({"pred": 3}, "pred is 3"),
        ({"gpt_judge": ""}, "gpt_judge"),
        ({"gt": "E"}, "gt is 'E'"),
        ({"gt": None}, "gt is None"),
        ({"type": 1}, "type is 1"),
    ],
)
def test_a_malformed_row_is_named_by_its_line(tmp_path, row, said):
    append_row(tmp_path / "s.jsonl", answers("B")[0])
    with open(tmp_path / "s.jsonl", "a") as file:
        file.write("\n")
    append_row(tmp_path / "s.jsonl", answers("B")[1] | row)
    done = call(main, "--score", tmp_path / "s.jsonl")
    assert done.returncode == 2 and "line 3" in done.stderr and said in done.stderr and not done.stdout


def test_what_is_no_submission_is_refused(tmp_path):
    (tmp_path / "half.jsonl").write_text('{"question_id": "v_0"}\nnot json\n')
    with pytest.raises(DataError, match="line 2"):
        score_file(tmp_path / "half.jsonl")
    (tmp_path / "none.jsonl").write_text("")
    with pytest.raises(DataError, match="no answer to score"):
        score_file(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match="cannot read"):
        score_file(tmp_path / "absent.jsonl")


# -- annotations ---------------------------------------------------------------------------------------------------


def load(tmp_path, entries):
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(entries))
    return load_examples(path, tmp_path)


def test_the_prompt_is_the_published_one(tmp_path):
    (example,) = load(tmp_path, [ENTRY])
    assert (example.question_id, example.right, example.video) == ("one_2", "C", tmp_path / "one.mp4")
    assert "<image>".join(example.prompt.texts) == (
        "<|im_start|>system\nCarefully watch this video and pay attention to every detail. Based on your observations, "
        "select the best option that accurately addresses the question.<|im_end|>\n<|im_start|>user\n<image>\n"
        "Question: Which?\nOptions:\n(A) a\n(B) b\n(C) c\n(D) d\n<|im_end|>\n<|im_start|>assistant\n"
    )
    assert extract("The answer is (C) c (see)") == "C" and extract("none") == "none"


@pytest.mark.parametrize(
    "entry, said",
    [
        ({key: value for key, value in ENTRY.items() if key != "gt"}, "entry 0 lacks gt"),
        ({**ENTRY, "options": ["a", "b", "c"]}, "has 3 options"),
        ({**ENTRY, "options": "abcd"}, "no list of options"),
        ({**ENTRY, "gt": "e"}, "must be one of its options"),
        ({**ENTRY, "type": "ret_edit9"}, "VNBench's are ret_edit1"),
        ({**ENTRY, "try": 4}, "from 0 to 3"),
        ("text", "must be an object"),
    ],
)
def test_an_entry_that_is_not_vnbenchs_is_named(tmp_path, entry, said):
    with pytest.raises(DataError, match=said):
        load(tmp_path, [entry])


def test_doubles_and_absent_videos_are_listed_before_a_model_is_loaded(tmp_path):
    with pytest.raises(DataError, match="one_2 twice"):
        load(tmp_path, [ENTRY, ENTRY])
    examples = load(tmp_path, [{**ENTRY, "video": f"v{number}.mp4"} for number in range(12)])
    with pytest.raises(DataError, match=r"12 of 12 videos are not in .*: v0.mp4, v1.mp4, .*--skip-missing"):
        check_videos(examples)
    done = call(main, "--annotations", tmp_path / "annotations.json", "--videos", tmp_path, "--model", tmp_path,
                "--output", tmp_path / "out" / "a.jsonl")  # fmt: skip
    assert done.returncode == 2 and "12 of 12 videos" in done.stderr and not (tmp_path / "out").exists()


# -- a whole run ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """Nine videos, one of each type, four tries each."""
    folder = tmp_path_factory.mktemp("vnbench")
    write_bench(folder, videos=1, frames=16)
    return folder


def test_a_synthetic_bench_has_vnbenchs_form_and_is_not_overwritten(bench, tmp_path, capsys):
    examples = load_examples(bench / "annotations.json", bench)
    check_videos(examples)
    assert len(examples) == 9 * TRIES and {example.kind for example in examples} == set(TYPES)
    for kind in TYPES:
        tries = [example for example in examples if example.kind == kind]
        assert [example.right for example in tries] == list("ABCD") and len({t.question for t in tries}) == 1
    before = (bench / "annotations.json").read_bytes()
    assert make_bench([str(bench)]) == 2 and "name another folder" in capsys.readouterr().err
    assert make_bench([str(tmp_path), "--videos", "0"]) == 2
    assert (bench / "annotations.json").read_bytes() == before


@pytest.fixture(scope="module")
def arguments(bench, small_base):
    """Makes a command line from an output file and more flags; the first two are the annotations."""
    fixed = ("--videos", bench, "--model", small_base, "--max-new-tokens", "8", "--device", "cpu")
    return lambda output, *more: ("--annotations", bench / "annotations.json", *fixed, "--output", output, *more)


@pytest.fixture(scope="module")
def whole(arguments, tmp_path_factory):
    output = tmp_path_factory.mktemp("submit") / "vnbench.jsonl"
    done = call(main, *arguments(output))
    assert done.returncode == 0, done.stderr[-3000:]
    return output, done


def test_every_question_is_answered_and_scored(bench, whole):
    output, done = whole
    rows = read_rows(output)
    assert [row["question_id"] for row in rows] == [f"{kind}_000_{t}" for kind in TYPES for t in range(TRIES)]
    assert {row["type"] for row in rows} == set(TYPES) and all(row["beacon_ratio"] == 8 for row in rows)
    assert all(row["frames"] == 16 and row["pred"] == extract(row["answer"]) for row in rows)
    entries = json.loads((bench / "annotations.json").read_text())
    assert all(entry["options"]["ABCD".index(row["gt"])] == entry["gt"] for entry, row in zip(entries, rows))
    assert done.stdout.strip() == printed(score_file(output))
    assert call(main, "--score", output).stdout == done.stdout
    assert list(output.parent.glob("*.part*")) == []


def test_a_cut_file_is_gone_on_with(arguments, whole, tmp_path):
    output = tmp_path / "vnbench.jsonl"
    lines = whole[0].read_bytes().splitlines(keepends=True)
    output.write_bytes(b"".join(lines[:7]) + b'{"question_id": "ret_insert1_000_2", "pre')  # what a kill leaves
    shutil.copy(whole[0].with_name("vnbench.jsonl.run.json"), tmp_path)
    done = call(main, *arguments(output))
    assert done.returncode == 0, done.stderr[-3000:]
    assert output.read_bytes() == whole[0].read_bytes() and done.stdout == whole[1].stdout


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_file(arguments, whole, tmp_path):
    output = tmp_path / "vnbench.jsonl"
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(SCRIPT), *map(str, arguments(output))]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and (not output.is_file() or output.read_bytes().count(b"\n") < 6):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = output.read_bytes()
    assert kept.count(b"\n") >= 6
    done = run(*arguments(output))
    assert done.returncode == 0, done.stderr[-3000:]
    assert output.read_bytes() == whole[0].read_bytes() and done.stdout == whole[1].stdout


@pytest.mark.slow
def test_two_processes_write_the_same_file(arguments, whole, tmp_path):
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    done = run(*arguments(tmp_path / "vnbench.jsonl"), launch=launch)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "vnbench.jsonl").read_bytes() == whole[0].read_bytes()
    assert done.stdout.count("Overall") == 1


def test_answers_of_another_run_are_neither_mixed_nor_overwritten(arguments, whole, tmp_path):
    before = whole[0].read_bytes()
    done = call(main, *arguments(whole[0], "--ratio", "4"))
    assert done.returncode == 2 and "another run" in done.stderr and whole[0].read_bytes() == before
    mine = tmp_path / "mine.jsonl"
    mine.write_text("mine")
    done = call(main, *arguments(mine))
    assert done.returncode == 2 and "name another file" in done.stderr and mine.read_text() == "mine"


@pytest.mark.slow
def test_a_first_start_that_failed_leaves_the_name_free(bench, arguments, tmp_path):
    output = tmp_path / "vn[1].jsonl"  # a name that is a pattern, too
    done = call(main, *arguments(output, "--ratio", "7000"))
    assert done.returncode == 2 and "Traceback" not in done.stderr
    (tmp_path / "vn[1].jsonl.run.json").write_text("{half")
    entries = json.loads((bench / "annotations.json").read_text())[:4]
    (tmp_path / "annotations.json").write_text(json.dumps(entries))
    few = ("--annotations", tmp_path / "annotations.json", *arguments(output)[2:])
    done = run(*few, launch=("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"))
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(read_rows(output)) == 4 and list(tmp_path.glob("*.part*")) == []


def test_an_unreadable_video_is_named_and_counted_and_the_rest_answered(bench, small_base, tmp_path):
    videos = tmp_path / "videos"
    videos.mkdir()
    entries = json.loads((bench / "annotations.json").read_text())[:8]
    first, second = dict.fromkeys(entry["video"] for entry in entries)
    cut(bench / first, videos / first, 0.02)
    (videos / second).write_bytes((bench / second).read_bytes())
    (tmp_path / "annotations.json").write_text(json.dumps(entries))
    output = tmp_path / "out" / "vnbench.jsonl"
    done = call(main, "--annotations", tmp_path / "annotations.json", "--videos", videos, "--model", small_base,
               "--output", output, "--max-new-tokens", "4", "--device", "cpu")  # fmt: skip
    assert done.returncode == 1 and f"not answered: {first}" in done.stderr and "1 videos could not" in done.stderr
    assert [row["question_id"] for row in read_rows(output)] == [f"{second[:-4]}_{t}" for t in range(TRIES)]


def test_wrong_models_and_folders_are_errors(bench, arguments, tmp_path):
    done = call(main, "--annotations", bench / "annotations.json", "--videos", bench, "--model", tmp_path, "--output",
                tmp_path / "a.jsonl")  # fmt: skip
    assert done.returncode == 2 and "Video-XL checkpoint" in done.stderr
    (tmp_path / "file").write_text("")
    done = call(main, *arguments(tmp_path / "file" / "a.jsonl"))
    assert done.returncode == 2 and "name another folder" in done.stderr
    done = call(main, "--annotations", bench / "annotations.json")
    assert done.returncode == 2 and "--videos is missing" in done.stderr


def test_frames_are_those_of_the_published_rule():
    """`int(i * fps) for i in range(int(duration))`, over the average rate."""
    from videoxl.media.choice import FrameChoice
    from videoxl.media.info import VideoInfo

    for fps, total in ((25.0, 263), (29.97, 905), (10.0, 7), (23.976, 500)):
        info = VideoInfo("x", np.arange(total) / fps, 4, 4, fps, "h264")
        duration = total / fps
        wanted = [int(i * fps) for i in range(int(duration)) if i * fps < total] or [0]
        assert FrameChoice(fps=1.0, by_average_rate=True).indices(info).tolist() == wanted
