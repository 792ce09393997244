"""Training records: LLaVA-style JSON files, patterns of them, and YAML mixtures; checked while they are read.

A record names its pictures or video and a conversation about them:

    {"id": "a", "image": "a.jpg", "conversations": [{"from": "human", "value": "<image>\\nWhat is this?"}, ...]}

`image` and `video` hold a path or a list of paths; one with neither is text only. Three keys are this project's own:
`conversations` may be a list of conversations, which share the visual input; `evidence` lists the seconds [start, end]
of a video that show the answer; `classes` gives class labels of a picture by attribute (for the tasks on classes).
"""

from __future__ import annotations

import json
import math
import random
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path

import yaml

from videoxl.constants import DEFAULT_IMAGE_TOKEN
from videoxl.errors import DataError, PromptError
from videoxl.train.data.labels import check_turns

_SHOWN = 5
_KEYS = ("id", "image", "video", "conversations", "evidence", "classes")
_USUAL = (
    "source",
    "dataset",
    "data_source",
    "model",
    "width",
    "height",
    "metadata",
    "question_id",
    "question_type",
    "type",
)


@dataclass(frozen=True)
class Record:
    """One sample.

    Attributes:
        id: names the sample in logs.
        kind: `image`, `video` or `text`.
        media: paths of its pictures or videos, in the order of the placeholders.
        conversations: turns; several conversations share the media.
        evidence: [start, end] seconds of the video that show the answer.
        classes: class names by attribute.
    """

    id: str
    kind: str
    media: tuple[Path, ...]
    conversations: tuple[tuple[dict[str, str], ...], ...]
    evidence: tuple[tuple[float, float], ...] = ()
    classes: dict[str, str] | None = None


class Records(list[Record]):
    """The records of a source that can be trained on.

    Attributes:
        malformed: (id, reason) of the others.
        notes: sentences for the user about keys that are not used.
    """

    def __init__(self, records: Iterable[Record] = ()):
        super().__init__(records)
        self.malformed: list[tuple[str, str]] = []
        self.notes: list[str] = []


def read_records(
    source: str,
    image_folder: str | None = None,
    video_folder: str | None = None,
    version: str = "qwen_1_5",
    task: str = "conversation",
    seed: int = 42,
) -> Records:
    """All records of a source. Ids that repeat get a number, so that each sample is counted by itself.

    Args:
        source: `FILE.json`, `PREFIX{a,b,c}.json`, or a mixture `FILE.yaml` with `datasets: [{json_path,
            sampling_strategy}]`, where the strategy is `all`, `first:N`, `end:N` or `random:N` (N or N%).
        image_folder, video_folder: base folder of relative paths; None: the folder of the JSON file.
        seed: seed of `random:N`.

    Raises:
        DataError: a missing or malformed file, or not one record that can be trained on; the first few are named.
    """
    records = Records()
    seen: Counter[str] = Counter()
    unused: Counter[str] = Counter()
    for path, strategy in list_files(source):
        entries = _load(path)
        folders = {"image": Path(image_folder or path.parent), "video": Path(video_folder or path.parent)}
        for index, entry in _sample(entries, strategy, path, seed):
            name = str(entry.get("id", index)) if isinstance(entry, dict) else str(index)
            name = _unused(name, seen)
            try:
                record = _parse(entry, index, folders, version, task)
                records.append(replace(record, id=name))
                unused.update(entry.keys() - {*_KEYS, *_USUAL})  # type: ignore[attr-defined]  # it was parsed
            except (DataError, PromptError, RecursionError) as error:
                records.malformed.append((name, f"{path}, record {name!r}: {error}"))
    records.notes += [_note(source, key, number) for key, number in sorted(unused.items())]
    if not records and records.malformed:
        shown = "\n".join(reason for _, reason in records.malformed[:_SHOWN])
        more = f"\n... and {len(records.malformed) - _SHOWN} more" if len(records.malformed) > _SHOWN else ""
        raise DataError(f"{len(records.malformed)} malformed record(s):\n{shown}{more}")
    if not records:
        raise DataError(f"{source} holds no records")
    return records


def _unused(name: str, seen: Counter[str]) -> str:
    """The id itself, or with a number where it was seen before."""
    found = name
    while found in seen:
        seen[name] += 1
        found = f"{name} ({seen[name]})"
    seen[found] += 1
    return found


def _note(source: str, key: str, number: int) -> str:
    near = get_close_matches(key, _KEYS, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"{number} record(s) of {source} have the key {key!r}, which is not used{hint}"


def list_files(source: str) -> list[tuple[Path, str]]:
    """The JSON files of a source, each with its sampling strategy."""
    if source.endswith((".yaml", ".yml")):
        path = Path(source)
        try:
            entries = (yaml.safe_load(path.read_text()) or {}).get("datasets")
        except (OSError, yaml.YAMLError, AttributeError) as error:
            raise DataError(f"cannot read the mixture {source}: {error}") from error
        if not isinstance(entries, list) or not all(isinstance(e, dict) and "json_path" in e for e in entries):
            raise DataError(f"{source} needs a list `datasets` whose entries have a `json_path`")
        return [(_beside(path, entry["json_path"]), str(entry.get("sampling_strategy") or "all")) for entry in entries]
    match = re.match(r"^(.*)\{(.*)\}\.json$", source)
    if match:
        prefix, names = match.groups()
        return [(Path(f"{prefix}{name}.json"), "all") for name in names.split(",")]
    return [(Path(source), "all")]


def _beside(mixture: Path, path: str) -> Path:
    """A path of a mixture: as given if the file exists, else relative to the mixture's folder."""
    return Path(path) if Path(path).is_file() else mixture.parent / path


def _load(path: Path) -> list:
    try:
        entries = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise DataError(f"no such file of records: {path}") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(entries, list):
        raise DataError(f"{path} holds a {type(entries).__name__}; it must be a list of records")
    return entries


def _sample(entries: list, strategy: str, path: Path, seed: int) -> list[tuple[int, object]]:
    numbered = list(enumerate(entries))
    if strategy == "all":
        return numbered
    match = re.match(r"^(first|end|random):(\d+)(%?)$", strategy)
    if not match:
        raise DataError(
            f"sampling_strategy {strategy!r} of {path} is not known; use all, first:N, end:N or random:N (N or N%)"
        )
    kind, number, percent = match.groups()
    number = math.ceil(int(number) * len(entries) / 100) if percent else int(number)
    if kind == "first":
        return numbered[:number]
    if kind == "end":
        return numbered[max(0, len(numbered) - number) :]
    return random.Random(f"{seed} {path.name}").sample(numbered, min(number, len(numbered)))


def _parse(entry: object, index: int, folders: dict[str, Path], version: str, task: str) -> Record:
    if not isinstance(entry, dict):
        raise DataError(f"it is a {type(entry).__name__}, not an object")
    kinds = [kind for kind in ("image", "video") if entry.get(kind)]
    if len(kinds) > 1:
        raise DataError("it has both `image` and `video`; a record has one of them")
    kind = kinds[0] if kinds else "text"
    paths = entry.get(kind, []) if kinds else []
    paths = paths if isinstance(paths, list) else [paths]
    if not all(isinstance(path, str) for path in paths):
        raise DataError(f"`{kind}` must be a path or a list of paths; it is {entry[kind]!r}")
    media = tuple(folders[kind] / path for path in paths) if kinds else ()
    if task != "conversation":
        classes = entry.get("classes")
        if kind != "image" or len(media) != 1 or not isinstance(classes, dict) or not classes:
            raise DataError("training on classes needs one `image` and `classes`, an object of attribute: name")
        return Record(str(entry.get("id", index)), kind, media, (), classes={k: str(v) for k, v in classes.items()})
    conversations = _conversations(entry, version)
    if not kinds:
        _check_mistyped(entry, conversations)
    for turns in conversations:
        placeholders = sum(turn["value"].count(DEFAULT_IMAGE_TOKEN) for turn in turns) if kinds else 0
        if placeholders != len(media):
            raise DataError(
                f"its text has {placeholders} <image>, and it names {len(media)} {kind}(s); the numbers must be equal"
            )
    return Record(str(entry.get("id", index)), kind, media, conversations, _evidence(entry))


def _check_mistyped(entry: dict, conversations) -> None:
    """Raise `DataError` for a text record with placeholders and a key that looks like `image` or `video`."""
    if not any(DEFAULT_IMAGE_TOKEN in turn["value"] for turns in conversations for turn in turns):
        return
    near = [key for key in entry.keys() - {*_KEYS, *_USUAL} if get_close_matches(str(key), ("image", "video"), n=1)]
    if near:
        wanted = get_close_matches(str(near[0]), ("image", "video"), n=1)[0]
        raise DataError(f"its text has <image>, and its key {near[0]!r} is not known; did you mean {wanted}?")


def _conversations(entry: dict, version: str) -> tuple[tuple[dict[str, str], ...], ...]:
    turns = entry.get("conversations")
    if not isinstance(turns, list) or not turns:
        raise DataError("it has no `conversations`")
    several = turns if isinstance(turns[0], list) else [turns]
    checked = []
    for conversation in several:
        if not all(isinstance(turn, dict) for turn in conversation):
            raise DataError("a turn of its conversation is not an object")
        kept = check_turns(conversation)
        if not any(turn["from"] == "gpt" for turn in kept):
            raise DataError("it has no answer to learn: no turn is from 'gpt'")
        if version == "plain" and (len(kept) != 2 or DEFAULT_IMAGE_TOKEN not in kept[0]["value"]):
            raise DataError(f"a plain record is an <image> turn and its caption; this one has {len(kept)} turns")
        checked.append(tuple(kept))
    return tuple(checked)


def _evidence(entry: dict) -> tuple[tuple[float, float], ...]:
    ranges = entry.get("evidence") or []
    try:
        return tuple((float(start), float(end)) for start, end in ranges)
    except (TypeError, ValueError) as error:
        raise DataError(f"`evidence` must be a list of [start, end] in seconds; it is {ranges!r}") from error
