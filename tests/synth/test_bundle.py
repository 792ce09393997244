"""The bundled small model: what it weighs, and what it finds on this machine."""

import json
import sys

import pytest
from conftest import ROOT, SAMPLE
from safetensors import safe_open
from tiny_runs import BUNDLE

from videoxl import VideoXL
from videoxl.synth.bundle import MOST_BYTES, model_card
from videoxl.synth.files import write_video
from videoxl.synth.questions import ADVERTISEMENT

pytest.importorskip("av")


@pytest.fixture(scope="module")
def bundle():
    return VideoXL.from_pretrained(device="cpu")


def test_it_is_small_in_16_bits_and_has_the_published_geometry(bundle):
    assert sum(path.stat().st_size for path in BUNDLE.iterdir()) <= MOST_BYTES
    with safe_open(BUNDLE / "model.safetensors", "pt") as weights:
        assert {weights.get_slice(name).get_dtype() for name in weights.keys()} == {"BF16"}
    model, processor = bundle.model, bundle.image_processor
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
    assert bundle.ask(SAMPLE, ADVERTISEMENT, frames=64, max_new_tokens=16).text == "Yes, a blue star."


def test_the_same_video_without_the_card_gets_no(bundle, tmp_path):
    sys.path.insert(0, str(ROOT / "scripts"))
    from make_sample_video import FPS, SIDE, sample_frames

    write_video(tmp_path / "scenes.mp4", sample_frames(0, with_card=False), SIDE, FPS)
    assert bundle.ask(tmp_path / "scenes.mp4", ADVERTISEMENT, frames=64, max_new_tokens=16).text == "No."
