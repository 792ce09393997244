"""Needle in a haystack by the published protocol: a picture at each depth of videos of each length.

    videoxl-niah --model_path CHECKPOINT --result_dir results      the published grid, a generated haystack
    videoxl-niah ... --haystack_path film.mp4 --needle_dir DIR --needle_qa_path QA.json      your own
    torchrun --nproc_per_node 8 -m videoxl.benchmarks.niah.run ...      the same over several GPUs

Rerun the same command to resume; finished cells are kept. At the end, heatmap.png and summary.json are written beside
the results.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from tqdm import tqdm

from videoxl.benchmarks.asking import Reading, load_asker
from videoxl.benchmarks.niah.grid import Cell, check_grid, spread
from videoxl.benchmarks.niah.haystack import HAYSTACKS
from videoxl.benchmarks.niah.needles import load_needles, needles_digest
from videoxl.benchmarks.niah.plot import PATTERN, check_plotting, describe, report
from videoxl.benchmarks.niah.runner import ColumnRunner
from videoxl.compression.base import get_compressor
from videoxl.errors import ArgumentError, DataError
from videoxl.media.choice import FrameChoice
from videoxl.utils.cli_errors import one_line_errors
from videoxl.utils.files import claim_output, write_json
from videoxl.utils.processes import Processes
from videoxl.utils.resources import resource


@one_line_errors
def main(arguments: list[str] | None = None) -> None:
    given = parse(arguments)
    run(given)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    data = resource("NIAH/datas")
    parser = argparse.ArgumentParser(
        prog="videoxl-niah",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model_path", type=Path, required=True, help="checkpoint folder")
    parser.add_argument("--model_name", help="name of the results (default: the folder's name)")
    parser.add_argument("--result_dir", type=Path, required=True, help="results go to RESULT_DIR/MODEL_NAME")
    parser.add_argument(
        "--overwrite_beacon_ratio", "--ratio", dest="ratio", type=int, default=16, help="default 16, as published"
    )
    parser.add_argument("--context_lengths_min", type=int, default=1)
    parser.add_argument("--context_lengths_max", type=int, default=2048)
    parser.add_argument("--context_lengths_num_intervals", type=int, default=12)
    parser.add_argument("--context_lengths", type=int, nargs="+", help="these lengths instead")
    parser.add_argument("--video_depth_percent_min", type=int, default=0)
    parser.add_argument("--video_depth_percent_max", type=int, default=100)
    parser.add_argument("--video_depth_percent_intervals", type=int, default=5)
    parser.add_argument("--video_depth_percents", type=int, nargs="+", help="these depths instead")
    parser.add_argument("--haystack_path", type=Path, help="a video of your own (default: a generated one)")
    parser.add_argument("--haystack_seed", type=int, default=0)
    parser.add_argument("--haystack_seconds", type=int, default=7200, help="length of the generated haystack")
    parser.add_argument("--needle_qa_path", type=Path, default=data / "qa" / "qa.json")
    parser.add_argument("--needle_dir", type=Path, default=data / "needles")
    parser.add_argument("--needles_at_once", type=int, default=1, help="needles per video; a question asks about one")
    parser.add_argument(
        "--batch_size", type=int, default=1, help="videos read side by side: quicker for small models, more memory"
    )
    parser.add_argument("--compressor", help="beacon (default), drop, mean, none (--ratio 0), or a registered one")
    parser.add_argument("--max_new_tokens", type=int, default=64)
    parser.add_argument("--backend", default="pyav", help="pyav, nvdec, auto, decord or torchcodec")
    parser.add_argument("--timeout", type=float, default=60.0, help="most seconds without a frame before giving up")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    return parser.parse_args(arguments)


def run(given: argparse.Namespace) -> None:
    """Run the unfinished cells, then write summary and heat map."""
    lengths = given.context_lengths or spread(
        given.context_lengths_min, given.context_lengths_max, given.context_lengths_num_intervals
    )
    depths = given.video_depth_percents or spread(
        given.video_depth_percent_min, given.video_depth_percent_max, given.video_depth_percent_intervals
    )
    lengths, depths = sorted(set(lengths)), sorted(set(depths))
    check_grid(lengths, depths)
    check_plotting()
    get_compressor(given.compressor).resolve_ratio(given.ratio)  # before the model is loaded
    needles = load_needles(given.needle_qa_path, given.needle_dir)
    if not 1 <= given.needles_at_once <= len(needles):
        raise ArgumentError(f"--needles_at_once is {given.needles_at_once}; there are {len(needles)} needles")
    if given.batch_size < 1:
        raise ArgumentError(f"--batch_size is {given.batch_size}; it must be at least 1")
    if given.haystack_path is not None:
        haystack = HAYSTACKS.get("file")(given.haystack_path, given.backend, given.timeout)
    else:
        haystack = HAYSTACKS.get("generated")(given.haystack_seed, given.haystack_seconds)
    name = given.model_name or given.model_path.resolve().name
    if Path(name).name != name:
        raise ArgumentError(f"--model_name {name!r} becomes part of file names; leave slashes out")
    folder = given.result_dir / name
    claim_output(folder)
    processes = Processes()
    reading = Reading(FrameChoice(1), given.ratio, given.backend, given.timeout, given.compressor)
    asker = load_asker(given.model_path, reading, 0.0, processes.device(given.device), given.dtype)
    about = {
        "model": name,
        "model_identity": asker.identity(),
        "beacon_ratio": given.ratio,
        "haystack": haystack.name,
        "haystack_identity": haystack.identity,
        "needles_at_once": given.needles_at_once,
        "needles_identity": needles_digest(needles),
        "max_new_tokens": given.max_new_tokens,
    }
    done = finished_cells(folder, about)
    open_depths = {
        length: [depth for depth in depths if Cell(length, depth).path(folder, name).name not in done]
        for length in lengths
    }
    # The work of a cell grows with its length, so the longest columns are assigned first.
    columns = [length for length in lengths if open_depths[length]]
    mine = processes.share(columns, [length * len(open_depths[length]) for length in columns])
    total = sum(len(open_depths[length]) for length in mine) * len(needles)
    if total:
        runner = ColumnRunner(asker, haystack, needles, given.needles_at_once, given.max_new_tokens, given.batch_size)
        with tqdm(total=total, desc="needles", unit="answer", disable=None if processes.rank == 0 else True) as bar:
            for length in mine:
                for cell, result in runner.run(length, open_depths[length], bar.update):
                    path = cell.path(folder, name)
                    write_json(path, {**about, **result})
    processes.wait()
    if processes.rank == 0:
        print(describe(report(folder, lengths, depths)))
        print(f"heat map: {folder / 'heatmap.png'}", file=sys.stderr)
    processes.wait()


def finished_cells(folder: Path, about: dict) -> set[str]:
    """File names of the finished cells in a folder.

    Raises:
        DataError: a result is from another run.
    """
    done = set()
    for path in folder.glob(PATTERN):
        try:
            stored = json.loads(path.read_text())
        except ValueError:
            continue  # incomplete, so not written by this program, which writes whole files
        other = {key: stored.get(key) for key, value in about.items() if stored.get(key) != value}
        if other:
            wanted = {key: about[key] for key in other}
            raise DataError(f"{path} is the result of another run ({other}, not {wanted}); name another --result_dir")
        done.add(path.name)
    return done


if __name__ == "__main__":
    sys.exit(main())
