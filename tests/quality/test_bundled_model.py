"""How well the bundled model does on this machine: a report that is run by hand (`scripts/test.sh --quality`), no gate.

`scripts/report.py` has the figures over hundreds of needles; these are quick samples of the same.
"""

import json

import pytest
from conftest import BUNDLE
from programs import call

from videoxl.benchmarks.niah.run import main as niah
from videoxl.synth.evaluate import Scores, evaluate, interval
from videoxl.synth.testset import TRIES

pytest.importorskip("av")
pytestmark = pytest.mark.quality


NEEDLES = 210  # every family of scenes at every depth, three times
TESTS = ((64, NEEDLES), (128, NEEDLES))  # frames and needles


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    """By frames, needles and what is kept."""
    scores = Scores(tmp_path_factory.mktemp("scores") / "scores.json", {})
    evaluate(BUNDLE, scores, "needle", [64], [8], NEEDLES, ("beacon", "drop", "mean"), files=6, device="cpu")
    evaluate(BUNDLE, scores, "needle", [128], [8], NEEDLES, ("beacon", "drop"), device="cpu")
    return {(cell["frames"], cell["total"], cell["reduction"]): cell for cell in scores.cells}


def share(cell):
    return cell["right"] / cell["total"]


def test_it_finds_its_needles_up_to_128_frames(cells):
    for test in TESTS:
        assert share(cells[*test, "beacon"]) >= 0.95
    assert cells[64, NEEDLES, "beacon"]["by"]["source"]["mp4"][1] == NEEDLES // 6


def test_learnt_compression_beats_as_many_tokens_kept_without_it(cells):
    """By their 95 % intervals. Where tokens are dropped, enough are kept of a card on the whole screen."""
    for test in TESTS:
        kept, dropped = (interval(cells[*test, how]["right"], NEEDLES) for how in ("beacon", "drop"))
        print(f"{test[0]} frames: beacons {kept[0]:.3f} to {kept[1]:.3f}, dropped {dropped[0]:.3f} to {dropped[1]:.3f}")
        assert kept[0] > dropped[1]


def test_learnt_compression_beats_means_of_tokens(cells):
    """Over every family of scenes at every depth: in some of them means find as much."""
    assert share(cells[64, NEEDLES, "beacon"]) > share(cells[64, NEEDLES, "mean"]) + 0.2


def test_without_the_video_it_knows_no_more_than_chance(tmp_path):
    """400 questions: a quarter, give or take three deviations."""
    scores = Scores(tmp_path / "scores.json", {})
    evaluate(BUNDLE, scores, "needle", [8], [8], 400, ("no video",), device="cpu")
    assert abs(share(scores.cells[0]) - 0.25) < 3 * (0.1875 / 400) ** 0.5


@pytest.mark.parametrize("task", ["ordering", "counting"])
def test_it_orders_and_counts_cards_better_than_chance(task, tmp_path):
    """Four tries a video, the right option in every place. Who guesses, by letter or by what an option says, gets a
    quarter of them; tries of one video may hang together, so they count for one."""
    scores = Scores(tmp_path / "scores.json", {})
    evaluate(BUNDLE, scores, task, [16], [8], 24, device="cpu")
    assert interval(scores.cells[0]["tries_right"] // TRIES, scores.cells[0]["total"])[0] > 0.25


def test_it_finds_its_needles_by_the_published_protocol(tmp_path):
    """All five needles at all five depths up to 128 frames."""
    grid = ("--context_lengths", "1", "16", "64", "128", "--video_depth_percents", "0", "25", "50", "75", "100")
    more = ("--ratio", "8", "--max_new_tokens", "16", "--haystack_seconds", "200", "--device", "cpu")
    done = call(niah, "--model_path", BUNDLE, "--result_dir", tmp_path, *grid, *more)
    assert done.returncode == 0, done.stderr[-3000:]
    summary = json.loads((tmp_path / BUNDLE.name / "summary.json").read_text())
    assert summary["cells"] == 20 and summary["generations"] == 100 and summary["beacon_ratio"] == 8
    assert summary["score"] >= 0.95
