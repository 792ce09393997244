"""The `videoxl` command as a user runs it: answers, numbers, one clear line for every mistake."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT, SAMPLE, TINY, run_cli
from programs import call
from videos import cut, write_sound, write_video

from videoxl.cli.app import main
from videoxl.synth.bundle import NOTE

BRIEF = ("--frames", "12", "--max-new-tokens", "5")


def test_ask_prints_the_answer_then_one_line_of_numbers():
    done = run_cli("ask", SAMPLE, "What is advertised?", *BRIEF)
    assert done.returncode == 0, done.stderr
    answer, line = done.stdout.splitlines()
    assert answer and line.startswith("[12 frames, 1728 visual tokens, ")
    for stage in ("ratio 8", "decode", "encode", "summarise", "first token", "peak memory"):
        assert stage in line
    assert done.stderr == f"note: {NOTE}\n"


def test_a_note_is_said_once(tmp_path):
    memory = tmp_path / "m.safetensors"
    for command in (("ask", SAMPLE, "Who?", "--max-new-tokens", "1"), ("summarize", SAMPLE, "-o", memory)):
        done = call(main, *command, "--frames", "30", "--end", "3")
        assert done.returncode == 0 and done.stderr.count("has 12 frames where 30 were asked for") == 1, done.stderr
        assert done.stderr.count(NOTE) == 1


def test_json_streaming_and_sampling():
    plain = call(main, "ask", SAMPLE, "Is `<image>` text?", *BRIEF, "--ratio", "4", "--json")
    report = json.loads(plain.stdout)
    assert (report["frames"], report["visual_tokens"], report["ratios"]) == (12, 1728, [4])
    assert set(report["seconds"]) == {"decode", "encode", "summarise", "first token", "answer"}
    assert 1 <= report["new_tokens"] <= 5 and report["peak_memory_bytes"] > 0
    streamed = call(main, "ask", SAMPLE, "Is `<image>` text?", *BRIEF, "--ratio", "4", "--stream")
    assert streamed.stdout.splitlines()[0].strip() == report["answer"]
    sampled = call(main, "ask", SAMPLE, "hello", *BRIEF, "--temperature", "0.8", "--fps", "1")
    assert sampled.returncode == 2 and "either a number of frames or fps" in sampled.stderr
    sampled = call(
        main, "ask", SAMPLE, "hello", "--fps", "1", "--end", "9", "--temperature", "0.8", "--max-new-tokens", "3"
    )
    assert sampled.returncode == 0 and "[9 frames" in sampled.stdout


def test_a_memory_answers_like_its_video_and_is_not_overwritten(tmp_path):
    memory = tmp_path / "film.videomemory.safetensors"
    done = call(main, "summarize", SAMPLE, "-o", memory, "--frames", "12")
    assert done.returncode == 0 and "wrote" in done.stdout, done.stderr
    direct = json.loads(call(main, "ask", SAMPLE, "Who?", *BRIEF, "--json").stdout)
    held = json.loads(call(main, "ask", memory, "Who?", "--max-new-tokens", "5", "--json").stdout)
    assert held["answer"] == direct["answer"] and held["frames"] == 12
    again = call(main, "summarize", SAMPLE, "-o", memory, "--frames", "12")
    assert again.returncode == 2 and "--force" in again.stderr
    assert call(main, "summarize", SAMPLE, "-o", memory, "--frames", "3", "--force").returncode == 0
    assert json.loads(call(main, "info", memory, "--json").stdout)["frames"] == 3
    assert memory.stat().st_mode & 0o777 == 0o666 & ~current_umask()
    twice = call(main, "summarize", memory, "-o", tmp_path / "m2")
    assert twice.returncode == 2 and "is a memory already" in twice.stderr
    refused = call(main, "ask", memory, "Who?", "--ratio", "4")
    assert refused.returncode == 2 and "has its frames and its ratio already" in refused.stderr
    cut(memory, tmp_path / "cut.safetensors", 0.5)
    broken = call(main, "ask", tmp_path / "cut.safetensors", "Who?")
    assert broken.returncode == 2 and "cut short" in broken.stderr


def test_version_and_numbers_agree():
    assert call(main, "--version").stdout.strip() == "videoxl 0.1.0"
    report = json.loads(call(main, "ask", SAMPLE, "Who?", *BRIEF, "--json").stdout)
    facts = json.loads(call(main, "estimate", "--frames", "12", "--json").stdout)
    prefix = report["cached_positions"] - 12 * 144 // 8
    assert 0 < prefix < 64 and facts["cached_positions"] == 12 * 144 // 8 + 64
    parts = sum(facts[f"{part}_bytes"] for part in ("weights", "cache", "work", "allowance"))
    assert facts["total_bytes"] == parts


def current_umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def test_info_tells_checkpoints_and_videos_apart():
    video = json.loads(call(main, "info", SAMPLE, "--json").stdout)
    assert (video["kind"], video["frames"], video["fps"], video["codec"]) == ("video", 240, 4.0, "h264")
    checkpoint = json.loads(call(main, "info", TINY, "--json").stdout)
    assert checkpoint["kind"] == "checkpoint" and checkpoint["parameters"] == 539_712
    assert "trained positions  32,768" in call(main, "info", TINY).stdout


def test_estimate_speaks_of_positions_past_training():
    far = call(main, "estimate", "--frames", 10_000, "--model", ROOT / "configs" / "qwen2-7b.json", "--json")
    facts = json.loads(far.stdout)
    assert (facts["visual_tokens"], facts["cached_positions"]) == (1_440_000, 180_064)
    assert facts["within_trained_positions"] is False
    table = call(main, "estimate", "--frames", 10_000, "--model", ROOT / "configs" / "qwen2-7b.json")
    assert "larger ratio or fewer frames" in table.stderr
    near = call(main, "estimate", "--frames", 100, "--ratio", 16, "--json")
    assert json.loads(near.stdout)["within_trained_positions"] is True


@pytest.fixture(scope="module")
def bad(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad")
    (folder / "text.mp4").write_text("no video\n")
    write_sound(folder / "sound.mp4")
    cut(SAMPLE, folder / "cut.mp4", 0.5)
    shutil.copytree(TINY, folder / "segmentation")
    config = folder / "segmentation" / "config.json"
    config.write_text(config.read_text().replace("full-coverage", "segmentation"))
    return folder


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("ask", "{bad}/none.mp4", "hi"), "no such video"),
        (("ask", "{bad}/text.mp4", "hi"), "cannot be opened as a video"),
        (("ask", "{bad}/cut.mp4", "hi"), "the file was cut"),
        (("ask", "{bad}/sound.mp4", "hi"), "no video stream"),
        (("ask", SAMPLE, "hi", "--frames", "0"), "the number of frames is 0"),
        (("ask", SAMPLE, "hi", "--ratio", "1441"), "larger than the window of 1440"),
        (("ask", SAMPLE, " "), "the question is empty"),
        (("ask", SAMPLE, "hi", "--model", "{bad}/segmentation"), "'full-coverage'"),
        (("ask", SAMPLE, "hi", "--model", "{bad}/none"), "no such checkpoint folder"),
        (("ask", SAMPLE, "hi", "--backend", "vlc"), "'vlc' is not known"),
        (("ask", SAMPLE, "hi", "--dtype", "float99"), "'float99'"),
        (("summarize", SAMPLE, "-o", "{bad}/none/m"), "its folder does not exist"),
        (("summarize", SAMPLE, "-o", "{bad}", "--force"), "it is a folder"),
        (("ask", SAMPLE, "hi", "--device", "cuda:7"), "'cuda:7' is not here"),
        (("ask", SAMPLE, "hi", "--device", "toaster"), "'toaster' is not known"),
        (("info", "{bad}/none"), "no such video"),
        (("estimate", "--frames", "9", "--ratio", "-3"), "-3 is not a whole number"),
        (("estimate", "--frames", "9", "--dtype", "int3"), "'int3'"),
    ],
)
def test_mistakes_end_with_one_line_and_status_2(bad, arguments, said):
    done = call(main, *[str(argument).format(bad=bad) for argument in arguments])
    assert done.returncode == 2
    assert done.stdout == ""
    lines = [line for line in done.stderr.splitlines() if not line.startswith("note:")]
    assert len(lines) == 1 and lines[0].startswith("error: ") and said in lines[0]


@pytest.mark.parametrize("arguments", [("ask", SAMPLE), ("ask", "--bogus"), ("fly",)])
def test_wrong_usage_ends_with_status_2(arguments):
    done = call(main, *arguments)
    assert done.returncode == 2 and "Usage" in done.stderr


def test_a_mistake_ends_a_process_of_its_own_with_that_status_and_no_traceback(tmp_path):
    done = run_cli("ask", tmp_path / "none.mp4", "hi")
    assert done.returncode == 2 and done.stdout == "" and done.stderr.startswith("error: no such video: ")
    assert done.stderr.count("\n") == 1


def test_a_damaged_file_is_used_as_far_as_it_goes(tmp_path):
    write_video(tmp_path / "whole.mp4", 100, options={"movflags": "faststart"})
    cut(tmp_path / "whole.mp4", tmp_path / "cut.mp4", 0.6)
    done = run_cli("ask", tmp_path / "cut.mp4", "hi", *BRIEF)
    assert done.returncode == 0 and "can be read: cut short" in done.stderr


def is_decoder(process) -> bool:
    """Not one of the children that libraries start while they are imported."""
    try:
        return any("media.worker" in argument for argument in process.cmdline())
    except Exception:  # it has just ended
        return False


def test_ctrl_c_leaves_no_child_and_no_file(tmp_path):
    psutil = pytest.importorskip("psutil")
    command = [
        sys.executable,
        "-m",
        "videoxl.cli",
        "summarize",
        str(SAMPLE),
        "-o",
        str(tmp_path / "m"),
        "--frames",
        "600",
    ]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    children = []
    deadline = time.monotonic() + 60
    while not children and time.monotonic() < deadline:
        children = [child for child in psutil.Process(process.pid).children() if is_decoder(child)]
        time.sleep(0.05)
    assert children
    os.kill(process.pid, signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode not in (0, None)
    _, alive = psutil.wait_procs(children, timeout=10)
    assert alive == []
    assert list(tmp_path.iterdir()) == []
