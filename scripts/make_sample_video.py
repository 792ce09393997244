"""Make the bundled sample video: scenes of the synthetic world and, for one second, one inserted card. Seeded; H.264.

python scripts/make_sample_video.py assets/sample.mp4
python scripts/make_sample_video.py scenes.mp4 --no-card
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from videoxl.synth.cards import Card
from videoxl.synth.files import write_video
from videoxl.synth.scenes import families
from videoxl.synth.story import tell

SECONDS, FPS, SIDE = 60, 4, 336
CARD = Card("blue", "star")
"""From the training world: the sample is a demonstration, not a test."""
DEPTH = 0.64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("output", type=Path, help="mp4 file to write; an existing one is replaced")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-card", action="store_true", help="the same scenes without the card")
    arguments = parser.parse_args()
    write_video(arguments.output, sample_frames(arguments.seed, not arguments.no_card), SIDE, FPS)
    print(f"wrote {arguments.output} ({arguments.output.stat().st_size / 1024:.0f} KiB)")


def sample_frames(seed: int, with_card: bool) -> np.ndarray:
    """Numbers of all frames, [F, WIDTH]."""
    story = tell(
        np.random.default_rng(seed),
        SECONDS * FPS,
        [CARD] if with_card else [],
        families(held_out=True),
        DEPTH,
        clip_frames=(6 * FPS, 12 * FPS),
        card_frames=(FPS, FPS),
        overlaid=0.0,
    )
    return story.numbers


if __name__ == "__main__":
    main()
