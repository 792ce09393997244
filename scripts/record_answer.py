"""Record the picture at the top of the README: a real question in a terminal, as SVG.

python scripts/record_answer.py assets/answer.svg
"""

from __future__ import annotations

import argparse
import io
import re
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = (
    ("videoxl", "summarize", "assets/sample.mp4", "-o", "sample.videomemory.safetensors", "--frames", "60"),
    ("videoxl", "ask", "sample.videomemory.safetensors", "What colour is the star on the card?"),
)
WIDTH = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="SVG file to write; an existing one is replaced")
    output = parser.parse_args().output
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True)
    memory = ROOT / "sample.videomemory.safetensors"
    if memory.exists():
        sys.exit(f"error: {memory} is yours; move it away first")
    try:
        for command in COMMANDS:
            shown = " ".join(f'"{part}"' if " " in part else part for part in command)
            console.print(Text("$ ", style="bold green") + Text(shown, style="bold"))
            program = [sys.executable, "-c", "from videoxl.cli.app import main; main()", *command[1:]]
            done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, check=True)
            for line in done.stdout.splitlines():
                console.print(Text(line))
    finally:
        memory.unlink(missing_ok=True)
    svg = console.export_svg(title="videoxl")
    svg = re.sub(r"\s*@font-face \{.*?\}", "", svg, flags=re.S)  # so that the picture loads no web fonts
    output.write_text(svg)
    print(f"wrote {output}")


if __name__ == "__main__":
    main()
