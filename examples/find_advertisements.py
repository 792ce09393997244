"""Find inserted advertisements: ask about each window of a film, then halve windows with one until its times are known.

python examples/find_advertisements.py film.mp4 --model path/to/VideoXL_weight_8 --window 120 --precision 4
"""

from __future__ import annotations

import sys
from pathlib import Path

from time_windows import Moment, duration, open_model, parser_of, report, windows

from videoxl import VideoXL
from videoxl.errors import ArgumentError
from videoxl.utils.cli_errors import one_line_errors

QUESTION = "Does this video contain any inserted advertisement? If yes, which is the content of the ad?"


def ask_window(model: VideoXL, video: Path, start: float, end: float, fps: float, ratio: int | None) -> str | None:
    """The model's answer about the video between two times; None if it sees no advertisement."""
    text = model.ask(video, QUESTION, start=start, end=end, fps=fps, ratio=ratio, max_new_tokens=64).text
    return text if text.lower().startswith("yes") else None


def narrow(
    model: VideoXL, video: Path, start: float, end: float, text: str, precision: float, fps: float, ratio: int | None
) -> list[Moment]:
    """Locate the advertisements of a window that has one, to spans of at most `precision` seconds.

    A half in which the model sees none is dropped. If it sees none in either half, the whole window is kept.
    """
    if end - start <= precision:
        return [Moment(start, end, text)]
    middle = (start + end) / 2
    found = []
    for first, last in ((start, middle), (middle, end)):
        said = ask_window(model, video, first, last, fps, ratio)
        if said is not None:
            found += narrow(model, video, first, last, said, precision, fps, ratio)
    return found or [Moment(start, end, text)]


def join_touching(moments: list[Moment]) -> list[Moment]:
    """Merge adjacent moments with the same text."""
    joined: list[Moment] = []
    for moment in sorted(moments, key=lambda each: each.start):
        if joined and joined[-1].end >= moment.start and joined[-1].text == moment.text:
            joined[-1].end = moment.end
        else:
            joined.append(moment)
    return joined


def find_advertisements(
    model: VideoXL,
    video: Path,
    window: float = 120.0,
    precision: float = 4.0,
    fps: float = 1.0,
    ratio: int | None = None,
) -> list[Moment]:
    """Advertisements in order of time.

    Args:
        window: seconds per window in the first pass. precision: seconds at which halving stops. fps: frames per second.
    """
    if precision <= 0:
        raise ArgumentError(f"a precision of {precision} s is never reached; give one above 0")
    found = []
    for start, end in windows(0, duration(video), window):
        said = ask_window(model, video, start, end, fps, ratio)
        if said is not None:
            found += narrow(model, video, start, end, said, precision, fps, ratio)
    return join_touching(found)


@one_line_errors
def main(arguments: list[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--window", type=float, default=120, help="seconds per window in the first pass (default: 120)")
    parser.add_argument("--precision", type=float, default=4, help="seconds at which halving stops (default: 4)")
    parser.add_argument("--fps", type=float, default=1, help="frames per second (default: 1)")
    parser.add_argument("--ratio", type=int, help="visual tokens per cached position (default: the model's)")
    given = parser.parse_args(arguments)
    model = open_model(given)
    found = find_advertisements(model, given.video, given.window, given.precision, given.fps, given.ratio)
    report(f"{len(found)} advertisements", found, given.json, video=str(given.video))


if __name__ == "__main__":
    sys.exit(main())
