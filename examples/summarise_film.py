"""Summarise a film: describe each window, then the whole film from these descriptions and its frames.

python examples/summarise_film.py film.mp4 --model path/to/VideoXL_weight_8 --window 600 --frames 1024
"""

from __future__ import annotations

import sys
from pathlib import Path

from time_windows import Moment, clock, duration, open_model, parser_of, report, windows

from videoxl import VideoXL
from videoxl.utils.cli_errors import one_line_errors

PART = "Describe what happens in this part of the film in two or three sentences."
WHOLE = "These notes describe the film part by part:\n{notes}\nSummarise the whole film in one paragraph."


def summarise(
    model: VideoXL, video: Path, window: float, part_frames: int, frames: int, ratio: int | None, max_new_tokens: int
) -> tuple[list[Moment], str]:
    """Descriptions of the windows, and the summary of the whole.

    Args:
        window: seconds of a part. part_frames: frames of each part. frames: of the whole film.
        ratio: visual tokens a cached position; None: the model's own.
    """
    parts = []
    for start, end in windows(0, duration(video), window):
        answer = model.ask(
            video, PART, start=start, end=end, frames=part_frames, ratio=ratio, max_new_tokens=max_new_tokens
        )
        parts.append(Moment(start, end, answer.text))
        print(parts[-1], file=sys.stderr)
    notes = "\n".join(f"{clock(part.start)}: {part.text}" for part in parts)
    whole = model.ask(video, WHOLE.format(notes=notes), frames=frames, ratio=ratio, max_new_tokens=2 * max_new_tokens)
    return parts, whole.text


@one_line_errors
def main(arguments: list[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--window", type=float, default=600, help="seconds per part (default: 600)")
    parser.add_argument("--part-frames", type=int, default=256, help="frames per part (default: 256)")
    parser.add_argument("--frames", type=int, default=1024, help="frames of the whole film (default: 1024)")
    parser.add_argument("--ratio", type=int, help="visual tokens per cached position (default: the model's)")
    parser.add_argument("--max-new-tokens", type=int, default=256, help="longest description of a part (default: 256)")
    given = parser.parse_args(arguments)
    model = open_model(given)
    parts, summary = summarise(
        model, given.video, given.window, given.part_frames, given.frames, given.ratio, given.max_new_tokens
    )
    report(summary, parts, given.json, video=str(given.video), summary=summary)


if __name__ == "__main__":
    sys.exit(main())
