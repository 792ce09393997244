"""Run VNBench on a checkpoint, or score a submission.

    videoxl-vnbench --annotations VNBench-main-4try.json --videos DIR --model DIR --output vnbench.jsonl
    torchrun --nproc_per_node 8 eval/eval_vnbench.py ...      the same on several GPUs (or with accelerate launch)
    videoxl-vnbench --score submit/vnbench.jsonl

Rerun the same command to resume. Standard output gets the score in the format of VNBench's own scorer, standard error
a table; a JSON file beside the submission holds all numbers.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import nullcontext
from pathlib import Path

from videoxl.benchmarks.asking import Reading, load_asker
from videoxl.benchmarks.vnbench import Example, Submission, answer_all, check_videos, load_examples, missing_videos
from videoxl.benchmarks.vnbench_score import as_json, printed, score_file, table
from videoxl.compression.base import get_compressor
from videoxl.errors import ArgumentError
from videoxl.media.choice import FrameChoice
from videoxl.utils.cli_errors import one_line_errors
from videoxl.utils.digest import digest_file
from videoxl.utils.files import claim_output, only_writer, write_json
from videoxl.utils.processes import Processes


@one_line_errors
def main(arguments: list[str] | None = None) -> int:
    given = parse(arguments)
    if given.score is not None:
        show_score(given.score)
        return 0
    for name in ("annotations", "videos", "model", "output"):
        if getattr(given, name) is None:
            raise ArgumentError(f"--{name} is missing; --help shows what a run needs")
    return run(given)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="videoxl-vnbench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--annotations", type=Path, help="VNBench-main-4try.json")
    parser.add_argument("--videos", type=Path, help="folder of the videos")
    parser.add_argument("--model", type=Path, help="checkpoint folder")
    parser.add_argument("--output", type=Path, help="JSON Lines file to write; an unfinished one is resumed")
    parser.add_argument("--fps", type=float, default=1.0, help="frames per second (default 1, as published)")
    parser.add_argument("--max-frames", type=int, help="most frames, evenly spaced (default: no limit, as published)")
    parser.add_argument("--ratio", type=int, default=8, help="compression ratio (default 8)")
    parser.add_argument("--compressor", help="beacon (default), drop, mean, none (--ratio 0), or a registered one")
    parser.add_argument("--max-new-tokens", type=int, default=1024)
    parser.add_argument("--backend", default="pyav", help="pyav, nvdec, auto, decord or torchcodec")
    parser.add_argument("--timeout", type=float, default=60.0, help="most seconds without a frame before giving up")
    parser.add_argument("--skip-missing", action="store_true", help="skip questions about missing videos")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--score", type=Path, metavar="FILE", help="only score this submission")
    return parser.parse_args(arguments)


def run(given: argparse.Namespace) -> int:
    """Answer and score. Returns 1 if videos could not be read, else 0."""
    examples = load_examples(given.annotations, given.videos)
    if given.skip_missing:
        absent = set(missing_videos(examples))
        examples = [example for example in examples if example.video not in absent]
        print(f"left out: {len(absent)} videos that are not in {given.videos}", file=sys.stderr)
        if not examples:
            raise ArgumentError(f"none of the videos is in {given.videos}")
    check_videos(examples)
    claim_output(given.output.parent)
    processes = Processes()
    with nullcontext() if processes.rank else only_writer(given.output):
        return _answer(given, examples, processes)


def _answer(given: argparse.Namespace, examples: list[Example], processes: Processes) -> int:
    choice = FrameChoice(fps=given.fps, max_frames=given.max_frames, by_average_rate=True, stored_shape=True)
    get_compressor(given.compressor).resolve_ratio(given.ratio)  # before the model is loaded
    reading = Reading(choice, given.ratio, given.backend, given.timeout, given.compressor)
    asker = load_asker(given.model, reading, 0.0, processes.device(given.device), given.dtype)
    settings = {
        "model": asker.identity(),
        "annotations": digest_file(given.annotations),
        **{name: getattr(given, name) for name in ("fps", "max_frames", "ratio", "max_new_tokens")},
    }
    submission = Submission(given.output, settings, processes)
    failed = answer_all(asker, examples, submission, given.max_new_tokens)
    for video, reason in failed:
        print(f"not answered: {video.name}: {reason}", file=sys.stderr)
    number = processes.total(len(failed))
    if processes.rank == 0:
        submission.merge_parts(order=[example.question_id for example in examples])
        show_score(given.output)
        if number:
            print(f"{number} videos could not be read; rerun the same command to retry them", file=sys.stderr)
    processes.wait()
    return 1 if number else 0


def show_score(path: Path) -> None:
    scores = score_file(path)
    print(printed(scores))
    print(table(scores), file=sys.stderr)
    target = path.with_name(path.stem + ".score.json")
    try:
        write_json(target, as_json(scores))
    except OSError as error:
        print(f"note: the numbers could not be written to {target}: {error.strerror}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
