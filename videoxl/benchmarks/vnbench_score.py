"""VNBench's score: a video counts where all four tries are right. Prints the same lines as the
benchmark's own scorer (`evaluation/eval.py` of VideoNIAH).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from videoxl.errors import DataError
from videoxl.utils.json_lines import read_numbered

LETTERS = "ABCD"
TRIES = 4
GROUPS = {"ret": "retrieval", "ord": "ordering", "cnt": "counting"}


@dataclass(frozen=True)
class TypeScore:
    """Results of one type: right videos and all videos, right tries and all tries."""

    videos_right: int
    videos: int
    tries_right: int
    tries: int

    @property
    def accuracy(self) -> float:
        return self.videos_right / self.videos


def score_file(path: Path) -> dict[str, TypeScore]:
    """Scores of a submission by type, in alphabetical order.

    Raises:
        DataError: a malformed row (the message has its line number), or no row to score.
    """
    right: dict[str, Counter] = {}
    tries: dict[str, int] = {}
    for number, row in read_numbered(path):
        _check(row, f"{path}, line {number}")
        if row["pred"] is None:
            continue
        video, kind = row["question_id"][:-2], row["type"]
        hits = right.setdefault(kind, Counter())
        hits[video] += _is_right(row)
        tries[kind] = tries.get(kind, 0) + 1
    if not right:
        raise DataError(f"{path} holds no answer to score")
    return {
        kind: TypeScore(sum(hit == TRIES for hit in hits.values()), len(hits), sum(hits.values()), tries[kind])
        for kind, hits in sorted(right.items())
    }


def _is_right(row: dict) -> bool:
    if "gpt_judge" in row:
        return row["gpt_judge"][0] == "1"
    text = row["pred"].split(".")[0]
    said = next((letter for letter in LETTERS if letter in text), text)
    wanted = LETTERS[row["gt"]] if isinstance(row["gt"], int) else row["gt"]
    return said == wanted


def _check(row: dict, where: str) -> None:
    missing = [key for key in ("question_id", "pred", "gt", "type") if key not in row]
    if missing:
        raise DataError(f"{where} lacks {', '.join(missing)}")
    for key, kinds in (("question_id", str), ("type", str), ("pred", (str, type(None)))):
        if not isinstance(row[key], kinds):
            raise DataError(f"{where}: {key} is {row[key]!r}; it must be text")
    if "gpt_judge" in row and not (isinstance(row["gpt_judge"], str) and row["gpt_judge"]):
        raise DataError(f"{where}: gpt_judge is {row['gpt_judge']!r}; it must be text that begins with 1 or 0")
    if row["gt"] not in (*LETTERS, 0, 1, 2, 3):
        raise DataError(f"{where}: gt is {row['gt']!r}; it must be a letter from A to D or a number from 0 to 3")


def printed(scores: dict[str, TypeScore]) -> str:
    """The output of VNBench's own scorer."""
    lines = []
    for kind, score in scores.items():
        lines += [kind, f"true: {score.videos_right}, total: {score.videos}, acc: {score.accuracy}"]
    return "\n".join([*lines, f"Overall:  {overall(scores)}"])


def overall(scores: dict[str, TypeScore]) -> float:
    """Unweighted mean over types."""
    return sum(score.accuracy for score in scores.values()) / len(scores)


def groups(scores: dict[str, TypeScore]) -> dict[str, float]:
    """Unweighted means over the types of retrieval, ordering and counting."""
    means = {}
    for short, name in GROUPS.items():
        of_group = [score.accuracy for kind, score in scores.items() if kind.startswith(short)]
        if of_group:
            means[name] = sum(of_group) / len(of_group)
    return means


def as_json(scores: dict[str, TypeScore]) -> dict:
    """All numbers for a file."""
    return {
        "overall": overall(scores),
        **groups(scores),
        "types": {kind: {**vars(score), "accuracy": score.accuracy} for kind, score in scores.items()},
    }


def table(scores: dict[str, TypeScore]) -> str:
    """A table of types, groups and the overall score, in per cent."""
    lines = [f"{'type':<12} {'videos':>9} {'all four':>9} {'tries':>9}"]
    for kind, score in scores.items():
        share = score.tries_right / max(1, score.tries)
        lines.append(f"{kind:<12} {score.videos:>9} {score.accuracy:>9.1%} {share:>9.1%}")
    lines += [f"{name:<12} {'':>9} {mean:>9.1%}" for name, mean in groups(scores).items()]
    return "\n".join([*lines, f"{'overall':<12} {'':>9} {overall(scores):>9.1%}"])
