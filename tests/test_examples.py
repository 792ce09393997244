"""The examples: their logic with a model that answers by the clock, and as programs on generated videos."""

from __future__ import annotations

import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT, SAMPLE

sys.path.insert(0, str(ROOT / "examples"))

import find_advertisements as ads
import find_anomalies as anomalies
import summarise_film as film
from time_windows import Moment, clock, windows

from videoxl.errors import ArgumentError


class Clock:
    """A model that sees things at known seconds, and remembers which spans it was asked."""

    def __init__(self, *seen: tuple[float, float, str]):
        self.seen = seen
        self.asked: list[tuple[float, float]] = []

    def ask(self, source, question, start=None, end=None, **_):
        if start is not None:
            self.asked.append((start, end))
        texts = [text for first, last, text in self.seen if start is None or (first < end and last > start)]
        return SimpleNamespace(text=" and ".join(texts) or "No.")


def test_windows_cover_a_video_once_or_with_overlap():
    assert list(windows(0, 25, 10)) == [(0, 10), (10, 20), (20, 25)]
    assert list(windows(0, 20, 10, 5)) == [(0, 10), (5, 15), (10, 20)]
    assert list(windows(0, 4, 10)) == [(0, 4)]
    with pytest.raises(ArgumentError, match="cover nothing"):
        list(windows(0, 10, 0))


def test_seconds_are_written_as_a_clock():
    assert clock(3725.9) == "1:02:05" and str(Moment(0, 61, "x", 0.5)) == "0:00:00-0:01:01  0.50  x"


def test_advertisements_are_narrowed_to_their_seconds_and_kept_apart():
    model = Clock((37, 39, "Yes, tea."), (100, 101, "Yes, soap."))
    found = ads.find_advertisements(model, SAMPLE, window=60, precision=4)
    assert [moment.text for moment in found] == ["Yes, tea."]  # the sample has 60 seconds
    assert found[0].start <= 37 and found[0].end >= 39 and found[0].end - found[0].start <= 8
    assert len(model.asked) < 15  # by halves, not second by second


def test_a_precision_that_halving_never_reaches_is_refused():
    with pytest.raises(ArgumentError, match="precision of 0 s is never reached"):
        ads.find_advertisements(Clock((37, 39, "Yes, tea.")), SAMPLE, precision=0)


def test_a_window_stays_whole_where_neither_half_shows_it():
    class OnlyWhole(Clock):
        def ask(self, source, question, start=None, end=None, **_):
            return SimpleNamespace(text="Yes." if end - start >= 30 else "No.")

    found = ads.find_advertisements(OnlyWhole(), SAMPLE, window=30, precision=2)
    assert found == [Moment(0, 60, "Yes.")]


def test_a_summary_is_asked_of_the_whole_with_the_parts_as_notes():
    model = Clock((5, 6, "A cup."), (50, 51, "A door."))
    parts, whole = film.summarise(model, SAMPLE, 30, 8, 16, None, 20)
    assert [(part.start, part.end, part.text) for part in parts] == [(0, 30, "A cup."), (30, 60, "A door.")]
    assert whole == "A cup. and A door."


def test_the_probability_of_yes_is_taken_against_no():
    class Scored:
        def score(self, memory, prompt, continuation):
            return {"yes": -1.0, "no": -1.0 - np.log(3)}[continuation], True

    assert anomalies.probability_of_yes(Scored(), None, "Is it?") == pytest.approx(0.75)


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
    """A video of 40 seconds with a red star over seconds 28 to 30."""
    from videoxl.synth.cards import Card
    from videoxl.synth.files import write_video
    from videoxl.synth.story import tell

    story = tell(np.random.default_rng(5), 40, [Card("red", "star")], depth=0.72, card_frames=(2, 2), overlaid=0.0)
    path = tmp_path_factory.mktemp("generated") / "video.mp4"
    write_video(path, story.numbers, 336, 1)
    return path, story.shown[0]


def run(name, *arguments):
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / f"{name}.py", *map(str, arguments)],
        capture_output=True, text=True, timeout=300, cwd=ROOT,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, options",
    [
        ("find_advertisements", ["--window", 20, "--precision", 5]),
        (
            "find_anomalies",
            ["--window", 10, "--threshold", 0, "--event", "Is there a card with a red star in this video?"],
        ),
        ("summarise_film", ["--window", 20, "--part-frames", 16, "--frames", 32, "--max-new-tokens", 20]),
    ],
)
def test_the_examples_run_on_a_generated_video(name, options, generated):
    video, _ = generated
    status, out, err = run(name, video, *options, "--device", "cpu", "--json")
    assert status == 0, err[-2000:]
    given = json.loads(out)
    assert given["video"] == str(video)
    for moment in given["moments"]:
        assert 0 <= moment["start"] < moment["end"] <= 40.5 and moment["text"]
    if name == "find_anomalies":
        scores = [moment["score"] for moment in given["moments"]]
        assert len(scores) == 7 and scores == sorted(scores, reverse=True) and all(0 <= score <= 1 for score in scores)
    if name == "summarise_film":
        assert given["summary"] and len(given["moments"]) == 2
    status, out, _ = run(name, video, *options, "--device", "cpu")
    assert status == 0 and ("0:00:" in out or "0 advertisements" in out)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["find_advertisements", "find_anomalies", "summarise_film"])
def test_a_wrong_path_is_one_line(name):
    status, out, err = run(name, "nothing.mp4", "--device", "cpu")
    assert status != 0 and not out and err.splitlines()[-1] == "error: no such video: nothing.mp4"
