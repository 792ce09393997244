"""Find anomalies in surveillance footage: ask whether something happens in each window, and rank by likelihood.

    python examples/find_anomalies.py camera.mp4 --model path/to/VideoXL_weight_8 \\
        --event "Does somebody fall, fight or break in?" --window 30
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

from time_windows import Moment, duration, open_model, parser_of, report, windows

from videoxl import VideoXL
from videoxl.chat import question_prompt
from videoxl.utils.cli_errors import one_line_errors

EVENT = "Does anything unusual or dangerous happen in this video?"
ANSWER = "{event} Answer with yes or no."
DESCRIBE = "What unusual thing happens in this video? Answer in one sentence."


def probability_of_yes(model: VideoXL, memory: object, question: str, yes: str = "yes", no: str = "no") -> float:
    """Probability of `yes` against `no` as the answer to a question: 0 to 1."""
    prompt = question_prompt(question)
    (log_yes, _), (log_no, _) = (model.score(memory, prompt, answer) for answer in (yes, no))
    return 1 / (1 + math.exp(min(700.0, log_no - log_yes)))


def find_anomalies(
    model: VideoXL,
    video: Path,
    event: str = EVENT,
    describe: str = DESCRIBE,
    window: float = 30.0,
    overlap: float = 0.5,
    fps: float = 1.0,
    ratio: int | None = None,
    threshold: float = 0.5,
    max_new_tokens: int = 64,
) -> list[Moment]:
    """Windows in which the event is likelier than not, best first, each with a description.

    Args:
        event: a yes-or-no question. describe: question about the windows that reach the threshold.
        window: seconds per window. overlap: share of a window that the next one repeats, from 0 to below 1, so that
            short events at a border are whole in one of them. fps: frames per second. threshold: minimum probability.
    """
    found = []
    for start, end in windows(0, duration(video), window, window * (1 - overlap)):
        memory = model.read(video, start=start, end=end, fps=fps, ratio=ratio)  # read once, asked three times
        score = probability_of_yes(model, memory, ANSWER.format(event=event))
        if score >= threshold:
            text = model.ask(memory, describe, max_new_tokens=max_new_tokens).text
            found.append(Moment(start, end, text, score))
            print(found[-1], file=sys.stderr)
    return sorted(found, key=lambda moment: -(moment.score or 0.0))


@one_line_errors
def main(arguments: list[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--event", default=EVENT, help="what to look for, as a yes-or-no question")
    parser.add_argument("--describe", default=DESCRIBE, help="question about windows that reach the threshold")
    parser.add_argument("--window", type=float, default=30, help="seconds per window (default: 30)")
    parser.add_argument("--overlap", type=float, default=0.5, help="share of overlap between windows (default: 0.5)")
    parser.add_argument("--fps", type=float, default=1, help="frames per second (default: 1)")
    parser.add_argument("--ratio", type=int, help="visual tokens per cached position (default: the model's)")
    parser.add_argument("--threshold", type=float, default=0.5, help="minimum probability of yes (default: 0.5)")
    given = parser.parse_args(arguments)
    model = open_model(given)
    found = find_anomalies(
        model, given.video, given.event, given.describe, given.window, given.overlap, given.fps, given.ratio,
        given.threshold,
    )  # fmt: skip
    report(f"{len(found)} windows, likeliest first", found, given.json, video=str(given.video), event=given.event)


if __name__ == "__main__":
    sys.exit(main())
