"""Write the bundled needles, and haystack videos that the needle test otherwise draws on the fly.

python -m videoxl.synth.niah_data needles NIAH/datas
python -m videoxl.synth.niah_data haystack haystack.mp4 --seconds 7200
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from videoxl.errors import DataError
from videoxl.synth.cards import draw_cards, show_card
from videoxl.synth.files import write_picture, write_video
from videoxl.synth.haystack import GeneratedHaystack
from videoxl.synth.questions import choose_card, choose_colour, choose_shape
from videoxl.utils.cli_errors import one_line_errors
from videoxl.utils.files import claim_output

SIDE = 336
MAKERS = (choose_colour, choose_shape, choose_card, choose_colour, choose_shape)


def write_needles(folder: Path, seed: int = 0) -> None:
    """Five cards of the synthetic world's test side with their questions, no two of one colour or shape."""
    (folder / "needles").mkdir(parents=True, exist_ok=True)
    (folder / "qa").mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([seed, 78])
    stored: dict[str, list[str]] = {"retrieval_question": [], "answer": [], "needle": []}
    cards = draw_cards(rng, len(MAKERS), "test")
    for place, (card, maker) in enumerate(zip(cards, MAKERS)):
        name = f"{card.colour}_{card.shape}.png"
        write_picture(folder / "needles" / name, show_card(rng, card, 1), SIDE)
        question = maker(rng, [card], "test")
        while {other.name for other in cards if other != card} & set(question.options):
            question = maker(rng, [card], "test")  # several needles may be shown, so no other needle may be an option
        question = question.turned(place % 4)  # so that always answering the same letter scores as low as possible
        stored["retrieval_question"].append(question.as_needle().text)
        stored["answer"].append(question.answer)
        stored["needle"].append(name)
    (folder / "qa" / "qa.json").write_text(json.dumps(stored, indent=1) + "\n")


@one_line_errors
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m videoxl.synth.niah_data",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parts = parser.add_subparsers(dest="what", required=True)
    needles = parts.add_parser("needles", help="pictures and questions")
    needles.add_argument("folder", type=Path)
    haystack = parts.add_parser("haystack", help="an H.264 file, one frame a second")
    haystack.add_argument("file", type=Path)
    haystack.add_argument("--seconds", type=int, default=7200)
    for part in (needles, haystack):
        part.add_argument("--seed", type=int, default=0)
        part.add_argument("--force", action="store_true", help="replace what is there")
    given = parser.parse_args(arguments)
    target = given.folder / "qa" / "qa.json" if given.what == "needles" else given.file
    if target.exists() and not given.force:
        raise DataError(f"{target} exists; give --force to replace it")
    claim_output(given.folder if given.what == "needles" else given.file.parent)
    if given.what == "needles":
        write_needles(given.folder, given.seed)
    else:
        write_video(given.file, GeneratedHaystack(given.seed, given.seconds).numbers(), SIDE)
    print(f"wrote {target}")


if __name__ == "__main__":
    sys.exit(main())
