"""Write VNBench's nine types in the synthetic world: annotations and videos in the benchmark's form.

python -m videoxl.synth.vnbench FOLDER --videos 20 --frames 64
python eval/eval_vnbench.py --annotations FOLDER/annotations.json --videos FOLDER --model MODEL --output answers.jsonl
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from tqdm import tqdm

from videoxl.errors import DataError
from videoxl.synth.files import write_video
from videoxl.synth.testset import TRIES, TestSet
from videoxl.utils.cli_errors import one_line_errors
from videoxl.utils.files import claim_output

KINDS = {
    "ret": ("needle", ("edit1", "insert1", "insert2")),
    "ord": ("ordering", ("edit1", "insert1", "insert2")),
    "cnt": ("counting", ("edit1", "edit2", "insert1")),
}
"""Type -> task of the test world, and how the needle is inserted."""
EDITED, INSERTED = 1.0, 0.0  # share of cards that are laid over a scene instead of filling the screen
SIDE = 336
ANNOTATIONS = "annotations.json"


def write_bench(folder: Path, videos: int, frames: int, seed: int = 0, progress: bool = False) -> Path:
    """Write `videos` videos of each type, one frame per second, four tries each. Equal arguments give equal files.

    Cards of `edit` types are laid over scenes, those of `insert` types fill the screen.

    Returns:
        Path of the annotations. Existing videos are kept.

    Raises:
        DataError: fewer than 1 video or 8 frames.
    """
    if videos < 1 or frames < 8:
        raise DataError(f"{videos} videos of {frames} frames make no benchmark; give at least 1 of at least 8")
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    kinds = [(f"{short}_{how}", task, how) for short, (task, hows) in KINDS.items() for how in hows]
    with tqdm(total=videos * len(kinds), desc="writing", unit="video", disable=not progress) as bar:
        for place, (kind, task, how) in enumerate(kinds):
            overlaid = EDITED if how.startswith("edit") else INSERTED
            testset = TestSet(task, videos, frames, SIDE, seed=1000 * seed + place, overlaid=overlaid)
            for number in range(videos):
                item = testset[number]
                path = folder / f"{kind}_{number:03d}.mp4"
                if not path.is_file():
                    write_video(path, item.frames.numbers.numpy(), SIDE)
                entries += _entries(path.name, kind, item)
                bar.update()
    annotations = folder / ANNOTATIONS
    annotations.write_text(json.dumps(entries, indent=1) + "\n")
    return annotations


def _entries(name: str, kind: str, item) -> list[dict]:
    """Four tries: the right option in every place."""
    question = item.questions[0]
    entries = []
    for attempt in range(TRIES):
        turned = question.turned(attempt)
        entries.append(
            {
                "video": name,
                "question": question.head,
                "options": list(turned.options),
                "gt": turned.options[turned.right],
                "type": kind,
                "try": attempt,
            }
        )
    return entries


@one_line_errors
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m videoxl.synth.vnbench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--videos", type=int, default=20, help="videos of each of the nine types")
    parser.add_argument("--frames", type=int, default=64, help="frames per video, one per second")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    if (given.folder / ANNOTATIONS).exists():
        raise DataError(f"{given.folder / ANNOTATIONS} exists; name another folder")
    claim_output(given.folder)
    print(f"wrote {write_bench(given.folder, given.videos, given.frames, given.seed, progress=True)}")


if __name__ == "__main__":
    sys.exit(main())
