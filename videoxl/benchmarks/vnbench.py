"""VNBench: every question is asked four times, with the right option in another place each time.

Zhao et al., "Needle In A Video Haystack" (VideoNIAH), with the prompt and the frames of Video-XL's published scores
(`eval/eval_vnbench.py` of the published system).
"""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from videoxl.benchmarks.asking import VideoAsker
from videoxl.chat import SELECT_MESSAGE, PromptText, question_prompt
from videoxl.errors import DataError, VideoError
from videoxl.utils.files import read_json, write_json
from videoxl.utils.json_lines import append_row, read_rows, write_rows
from videoxl.utils.processes import Processes

LETTERS = "ABCD"
TYPES = (
    *("ret_edit1", "ret_insert1", "ret_insert2", "ord_edit1", "ord_insert1", "ord_insert2"),
    *("cnt_edit1", "cnt_edit2", "cnt_insert1"),
)
_SHOWN = 10  # names in a message


@dataclass(frozen=True)
class Example:
    """One try of one video. `right` is the letter of the right option."""

    question_id: str
    video: Path
    question: str
    options: tuple[str, ...]
    right: str
    kind: str
    number: int

    @property
    def prompt(self) -> PromptText:
        """As published: the options in lines, and a newline after the last one."""
        options = "\n".join(f"({letter}) {option}" for letter, option in zip(LETTERS, self.options))
        asked = f"Question: {self.question}\nOptions:\n{options}".rstrip()
        return question_prompt(f"{asked}\n", system=SELECT_MESSAGE)


def load_examples(annotations: Path, videos: Path) -> list[Example]:
    """Examples in the order of the file.

    Raises:
        DataError: no such file or folder, or an entry that is not VNBench's; the message names the entry.
    """
    entries = read_json(annotations, "the annotations")
    if not isinstance(entries, list) or not entries:
        raise DataError(f"{annotations} must hold a list of questions, as VNBench-main-4try.json does")
    if not videos.is_dir():
        raise DataError(f"no such folder of videos: {videos}")
    examples = [_example(entry, f"{annotations}, entry {number}", videos) for number, entry in enumerate(entries)]
    seen: set[str] = set()
    for example in examples:
        if example.question_id in seen:
            raise DataError(f"{annotations} has {example.question_id} twice; every (video, try) must be unique")
        seen.add(example.question_id)
    return examples


def _example(entry: object, where: str, videos: Path) -> Example:
    if not isinstance(entry, dict):
        raise DataError(f"{where} is {entry!r}; it must be an object")
    missing = [key for key in ("video", "question", "options", "gt", "type", "try") if key not in entry]
    if missing:
        raise DataError(f"{where} lacks {', '.join(missing)}: {_brief(entry)}")
    options = entry["options"]
    if not isinstance(options, list) or len(options) != len(LETTERS):
        number = len(options) if isinstance(options, list) else "no list of"
        raise DataError(f"{where} has {number} options; VNBench has {len(LETTERS)}: {_brief(entry)}")
    options = tuple(map(str, options))
    if options.count(str(entry["gt"])) != 1:
        raise DataError(f"{where}: its gt {entry['gt']!r} must be one of its options {list(options)}")
    if entry["type"] not in TYPES:
        raise DataError(f"{where} has the type {entry['type']!r}; VNBench's are {', '.join(TYPES)}")
    if entry["try"] not in range(len(LETTERS)):
        raise DataError(f"{where} has the try {entry['try']!r}; tries count from 0 to 3")
    name = Path(str(entry["video"])).name
    return Example(
        f"{Path(name).stem}_{entry['try']}",
        videos / name,
        str(entry["question"]),
        options,
        LETTERS[options.index(str(entry["gt"]))],
        entry["type"],
        int(entry["try"]),
    )


def missing_videos(examples: Sequence[Example]) -> list[Path]:
    """Missing videos."""
    return [video for video in dict.fromkeys(example.video for example in examples) if not video.is_file()]


def check_videos(examples: Sequence[Example]) -> None:
    """Raise `DataError` that counts and lists missing videos."""
    absent = missing_videos(examples)
    if absent:
        listed = ", ".join(path.name for path in absent[:_SHOWN]) + (", ..." if len(absent) > _SHOWN else "")
        total = len({example.video for example in examples})
        raise DataError(
            f"{len(absent)} of {total} videos are not in {absent[0].parent}: {listed}; give the folder that holds "
            "them, or leave their questions out with --skip-missing"
        )


def extract(answer: str) -> str:
    """The text in the first parentheses of an answer, or the whole answer."""
    found = re.search(r"\((.*?)\)", answer)
    return found.group(1) if found else answer


class Submission:
    """A file of answers that grows line by line and can be resumed by any number of processes.

    Every process except the first writes into a part file beside it; `merge_parts` merges and sorts them.

    Args:
        settings: settings that all answers in the file share.

    Raises:
        DataError: the file holds answers with other settings, or something else.
    """

    def __init__(self, path: Path, settings: dict, processes: Processes):
        self.path = path
        self.processes = processes
        self._own = path if processes.rank == 0 else path.with_name(f"{path.name}.part{processes.rank}")
        about = path.with_name(path.name + ".run.json")
        if path.exists() and path.stat().st_size:
            stored = about.read_text().strip() if about.is_file() else ""
            if stored != json.dumps(settings):
                raise DataError(
                    f"{path} holds answers of another run ({stored or 'or of no run of this program'}), not of "
                    f"{json.dumps(settings)}; name another file"
                )
        processes.wait()  # all processes have checked before the first one writes
        if processes.rank == 0:
            write_json(about, settings, indent=None)
            self.merge_parts(is_mended=True)
        processes.wait()
        self.done = {row["question_id"] for row in read_rows(path)} if path.is_file() else set()

    def add(self, row: dict) -> None:
        append_row(self._own, row)

    def merge_parts(self, is_mended: bool = False, order: Sequence[str] = ()) -> list[dict]:
        """Merge all answers into one file, in the `order` of their question ids, and delete the part files."""
        parts = sorted(self.path.parent.glob(glob.escape(self.path.name) + ".part*"))
        files = [file for file in (self.path, *parts) if file.is_file()]
        rows = {row["question_id"]: row for file in files for row in read_rows(file, is_mended)}
        place = {question_id: number for number, question_id in enumerate(order)}
        merged = sorted(rows.values(), key=lambda row: place.get(row["question_id"], len(place)))
        write_rows(self.path, merged)
        for part in parts:
            part.unlink()
        return merged


def answer_all(
    asker: VideoAsker, examples: Sequence[Example], submission: Submission, max_new_tokens: int = 1024
) -> list[tuple[Path, str]]:
    """Answer the open questions, grouped by video so that each video is read once.

    Returns:
        Videos that could not be read, each with the reason; their questions have no row.
    """
    open_ones = [example for example in examples if example.question_id not in submission.done]
    by_video: dict[Path, list[Example]] = {}
    for example in open_ones:
        by_video.setdefault(example.video, []).append(example)
    processes = submission.processes
    mine = processes.share(list(by_video))
    failed: list[tuple[Path, str]] = []
    number = sum(len(by_video[video]) for video in mine)
    with tqdm(total=number, desc="VNBench", unit="question", disable=None if processes.rank == 0 else True) as bar:
        for video in mine:
            try:
                memory = asker.memory(video, by_video[video][0].prompt)
            except VideoError as error:
                failed.append((video, str(error)))
                bar.update(len(by_video[video]))
                continue
            for example in by_video[video]:
                answer = asker.ask(memory, example.prompt, max_new_tokens=max_new_tokens)
                submission.add(_row(example, answer, asker.facts(memory)))
                bar.update()
    processes.wait()
    return failed


def _row(example: Example, answer: str, facts: dict) -> dict:
    return {
        "question_id": example.question_id,
        "pred": extract(answer),
        "gt": example.right,
        "type": example.kind,
        "try": example.number,
        "prompt": "<image>".join(example.prompt.texts),
        "answer": answer,
        "beacon_ratio": facts["beacon_ratio"],
        "frames": facts["frames"],
    }


def _brief(entry: dict) -> str:
    text = json.dumps(entry, ensure_ascii=False)
    return text if len(text) <= 160 else text[:160] + "..."
