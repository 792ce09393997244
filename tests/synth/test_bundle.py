"""The bundled small model: what it weighs, and what it finds on this machine."""

import json
import sys

import pytest
from conftest import ROOT, SAMPLE
from safetensors import safe_open
from tiny_runs import BUNDLE

from videoxl.conversation import join_prompt_ids, video_prompt_ids
from videoxl.model.builder import load_pretrained_model
from videoxl.synth.bundle import MOST_BYTES, model_card
from videoxl.synth.evaluate import Scores, evaluate, interval
from videoxl.synth.files import write_video
from videoxl.synth.questions import ADVERTISEMENT
from videoxl.synth.testset import TRIES
from videoxl.video import FrameChoice, open_video

pytest.importorskip("av")


@pytest.fixture(scope="module")
def bundle():
    return load_pretrained_model(BUNDLE, device_map="cpu")


def ask(bundle, video, question, frames=128):
    import torch

    tokenizer, model, processor, _ = bundle
    before, behind = video_prompt_ids(tokenizer, question)
    with open_video(str(video), processor, FrameChoice(num_frames=frames)) as stream:
        memory = model.summarize(stream, prefix_ids=before, ratio=8)
    prompt = torch.tensor([join_prompt_ids(before, behind)])
    output = model.generate(prompt, memory=memory, max_new_tokens=16, do_sample=False)
    return tokenizer.decode(output[0, prompt.shape[1] - 1 + memory.num_visual_tokens :], skip_special_tokens=True)


def test_it_is_small_in_16_bits_and_has_the_published_geometry(bundle):
    assert sum(path.stat().st_size for path in BUNDLE.iterdir()) <= MOST_BYTES
    with safe_open(BUNDLE / "model.safetensors", "pt") as weights:
        assert {weights.get_slice(name).get_dtype() for name in weights.keys()} == {"BF16"}
    _, model, processor, _ = bundle
    assert (processor.side, model.config.beacon_window, model.model.vision_tower.num_patches) == (336, 1440, 576)
    card = (BUNDLE / "README.md").read_text()
    assert "apache-2.0" in card and "train_tiny.sh" in card and "## Limits" in card


def test_its_card_has_the_scores_of_the_report():
    sys.path.insert(0, str(ROOT / "scripts"))
    from report import join_parts

    def scores(card):
        return card[card.index("## Scores") : card.index("## Limits")]

    cells = join_parts(json.loads((ROOT / "docs" / "results" / "tiny-bundle.json").read_text())["cells"])
    made = scores(model_card("gpu", 0, 0, cells))
    assert made == scores((BUNDLE / "README.md").read_text())
    of_tries = [line for line in made.splitlines() if line.endswith(" tries |")]
    assert [line.split()[1] for line in of_tries] == ["ordering", "counting"]


def test_the_quick_starts_question_is_answered_right(bundle):
    assert ask(bundle, SAMPLE, ADVERTISEMENT) == "Yes, a blue star."


def test_the_same_video_without_the_card_gets_no(bundle, tmp_path):
    sys.path.insert(0, str(ROOT / "scripts"))
    from make_sample_video import FPS, SIDE, sample_frames

    write_video(tmp_path / "scenes.mp4", sample_frames(0, with_card=False), SIDE, FPS)
    assert ask(bundle, tmp_path / "scenes.mp4", ADVERTISEMENT) == "No."


TESTS = ((64, 28), (64, 70), (128, 28))  # frames and needles; 70 are every family of scenes at every depth


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    """By frames, needles and what is kept."""
    scores = Scores(tmp_path_factory.mktemp("scores") / "scores.json", {})
    evaluate(BUNDLE, scores, "needle", [64], [8], 28, ("beacon", "drop"), files=6, device="cpu")
    evaluate(BUNDLE, scores, "needle", [64], [8], 70, ("beacon", "drop", "mean"), files=6, device="cpu")
    evaluate(BUNDLE, scores, "needle", [128], [8], 28, ("beacon", "drop"), device="cpu")
    return {(cell["frames"], cell["total"], cell["reduction"]): cell for cell in scores.cells}


def share(cell):
    return cell["right"] / cell["total"]


def test_it_finds_its_needles_up_to_128_frames(cells):
    for test in TESTS:
        assert share(cells[*test, "beacon"]) >= 0.95
    assert [cells[64, total, "beacon"]["by"]["source"]["mp4"][1] for total in (28, 70)] == [5, 12]


def test_learnt_compression_beats_as_many_tokens_kept_without_it(cells):
    """By little where tokens are dropped: of a card on the whole screen enough are kept."""
    for test in TESTS:
        assert share(cells[*test, "beacon"]) > share(cells[*test, "drop"]) + 0.1


def test_learnt_compression_beats_means_of_tokens(cells):
    """Over every family of scenes at every depth: in some of them means find as much."""
    assert share(cells[64, 70, "beacon"]) > share(cells[64, 70, "mean"]) + 0.2


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
