"""Write the generated pages of docs/reference: command line, training options, configuration.

python scripts/reference.py            write them
python scripts/reference.py --check    exit with status 1 if a page is out of date
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from typer.main import get_command

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from videoxl.cli.app import app  # noqa: E402  (the checkout's own, whatever is installed)
from videoxl.model.configuration import VideoXLConfig  # noqa: E402
from videoxl.train.config import DataArguments, ModelArguments, TrainingArguments  # noqa: E402

FOLDER = ROOT / "docs" / "reference"
HEAD = "<!-- written by scripts/reference.py -->\n"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def code(value: object) -> str:
    return f"`{value}`"


def command_line() -> str:
    """Every command of `videoxl` with its arguments and options."""
    group = get_command(app)
    parts = [
        "# Command line",
        HEAD,
        "`videoxl COMMAND --help` prints the same. Answers and tables go to standard output, progress "
        "and notes to standard error. An error is one line and status 2.",
    ]
    for name, command in group.commands.items():
        parts += [f"## videoxl {name}", (command.help or "").strip()]
        rows = []
        for parameter in command.params:
            if parameter.name == "help":
                continue
            is_option = bool(parameter.opts and parameter.opts[0].startswith("-"))
            called = ", ".join(map(code, parameter.opts)) if is_option else code(parameter.name.upper())
            given = getattr(parameter, "default", None)
            default = "required" if parameter.required else "" if given is None or given is False else code(given)
            rows.append([called, default, getattr(parameter, "help", "") or ""])
        parts.append(table(["Option", "Default", "What it does"], rows))
    parts += [
        "## Other programs",
        table(
            ["Program", "What it does"],
            [
                ["`videoxl-train` (`python -m videoxl.train`)", "trains; see [Training options](training-options.md)"],
                ["`videoxl-vnbench`", "runs or scores VNBench"],
                ["`videoxl-niah`", "runs the needle-in-a-haystack test"],
                ["`python -m videoxl.train.merge`", "merges adapters into a checkpoint"],
                ["`python -m videoxl.synth.files`", "writes videos and records of the synthetic world"],
                ["`python -m videoxl.synth.evaluate`", "scores a checkpoint on the synthetic world"],
                ["`python -m videoxl.synth.choose`", "chooses among trained seeds by validation scores"],
            ],
        ),
    ]
    return "\n\n".join(parts) + "\n"


def own_fields(kind: type) -> Iterator[dataclasses.Field]:
    """Fields that the class itself declares with a help text."""
    declared = inspect.get_annotations(kind)
    return (each for each in dataclasses.fields(kind) if each.name in declared and "help" in each.metadata)


def training_options() -> str:
    """The flags that this project adds to transformers' TrainingArguments."""
    parts = [
        "# Training options",
        HEAD,
        "Flags of `videoxl-train` (`python -m videoxl.train`), besides those of transformers' [TrainingArguments]"
        "(https://huggingface.co/docs/transformers/main_classes/trainer#transformers.TrainingArguments). "
        "`--help` lists both.",
    ]
    for title, kind in (("Model", ModelArguments), ("Data", DataArguments), ("Run", TrainingArguments)):
        rows = [
            [code("--" + each.name), "" if each.default in (None, "") else code(each.default), each.metadata["help"]]
            for each in own_fields(kind)
        ]
        parts += [f"## {title}", table(["Flag", "Default", "What it does"], rows)]
    return "\n\n".join(parts) + "\n"


def configuration() -> str:
    """The keys that Video-XL adds to a Qwen2 configuration, with their defaults."""
    doc = (VideoXLConfig.__doc__ or "").strip().split("\n\n")[0]
    names = [
        name for name in VideoXLConfig.__annotations__ if name.startswith(("beacon", "enable_beacon", "mm_", "image_"))
    ]
    rows = [[code(name), code(getattr(VideoXLConfig, name, None))] for name in names]
    return (
        "\n\n".join(
            [
                "# Configuration",
                HEAD,
                " ".join(doc.split()),
                "`config.json` holds Qwen2's keys and these. [The compressor](../explanation/compressor.md) says what "
                "the `beacon_` keys mean; an unsupported value is an error that names the key.",
                table(["Key", "Default"], rows),
            ]
        )
        + "\n"
    )


PAGES = {"command-line.md": command_line, "training-options.md": training_options, "configuration.md": configuration}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    given = parser.parse_args(arguments)
    stale = []
    for name, make in PAGES.items():
        path = FOLDER / name
        text = make()
        if not path.is_file() or path.read_text() != text:
            stale.append(name)
            if not given.check:
                path.write_text(text)
    if given.check and stale:
        print(f"error: {', '.join(stale)} differ from the code; run scripts/reference.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
