"""A haystack of generated scenes for the needle test: seeded, hours long and free to redistribute.

Shape letters: F frames of a chunk, S side of the model's input.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from videoxl.errors import ArgumentError, VideoError
from videoxl.media.pixels import VideoXLImageProcessor
from videoxl.media.stream import CHUNK
from videoxl.synth.drawing import draw
from videoxl.synth.scenes import families, make_clip

SCENE_SECONDS = (4, 40)


class GeneratedHaystack:
    """Scenes of moving textures, shapes, text and gradients, drawn when they are needed.

    Args:
        seconds: length of the whole video, one frame per second. Every haystack length samples this same video.
    """

    def __init__(self, seed: int = 0, seconds: int = 7200):
        if seconds < 1:
            raise ArgumentError(f"a haystack of {seconds} seconds has no frame; give at least 1")
        if seed < 0:
            raise ArgumentError(f"the haystack's seed is {seed}; seeds count from 0")
        self.name = self.identity = f"generated, {seconds} s, seed {seed}"
        self.seed, self.seconds = seed, seconds

    def numbers(self) -> np.ndarray:
        """All frames as numbers to draw from, [seconds, WIDTH] float32 (0.5 KiB a frame)."""
        rng = np.random.default_rng([self.seed, 77])
        names = families(held_out=True)
        clips, filled = [], 0
        while filled < self.seconds:
            length = min(int(rng.integers(SCENE_SECONDS[0], SCENE_SECONDS[1] + 1)), self.seconds - filled)
            clips.append(make_clip(rng, names[rng.integers(len(names))], length))
            filled += length
        return np.concatenate(clips)

    def chunks(
        self, length: int, processor: VideoXLImageProcessor, device: torch.device | str = "cpu"
    ) -> Iterator[Tensor]:
        """Chunks uint8 [F, S, S, 3], drawn on `device`, `length` frames in all. Raises `VideoError` if `length` is
        larger than `seconds`.
        """
        if length > self.seconds:
            raise VideoError(f"the haystack has {self.seconds} frames; {length} need a larger --haystack_seconds")
        numbers = torch.from_numpy(self.numbers())
        chosen = numbers[np.linspace(0, self.seconds - 1, length, dtype=int)]
        for part in chosen.split(CHUNK):
            yield draw(part, processor.side, device)
