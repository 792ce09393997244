"""Haystacks: a video file of the user's own, or scenes that are generated, seeded, hours long and free to pass on.

Shape letters: F frames of a chunk, S side of the model's input.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from videoxl.errors import ArgumentError, VideoError
from videoxl.image_processing import VideoXLImageProcessor
from videoxl.synth.drawing import draw
from videoxl.synth.scenes import families, make_clip
from videoxl.video import CHUNK, FrameChoice, open_video

SCENE_SECONDS = (4, 40)


class FileHaystack:
    """Frames of a video file, uniform over all of it.

    Attributes:
        name: for people. identity: what tells it from another one of the same name.
    """

    def __init__(self, path: Path, backend: str = "pyav", timeout: float | None = 60.0):
        if not path.is_file():
            raise VideoError(f"no such haystack: {path}; leave --haystack_path out to generate one")
        self.name = path.name
        with path.open("rb") as file:
            head = hashlib.sha256(file.read(1 << 20)).hexdigest()
        self.identity = f"{path.stat().st_size} bytes, {head[:16]}"
        self._path, self._backend, self._timeout = path, backend, timeout

    def chunks(
        self, length: int, processor: VideoXLImageProcessor, device: torch.device | str = "cpu"
    ) -> Iterator[Tensor]:
        """uint8 [F, S, S, 3] at a time, `length` frames in all. Raises `VideoError` for a file with fewer."""
        choice = FrameChoice(num_frames=length)
        with open_video(str(self._path), processor, choice, backend=self._backend, timeout=self._timeout) as stream:
            if stream.num_frames < length:
                raise VideoError(
                    f"{self._path} has {stream.num_frames} frames; a haystack of {length} needs as many. Give a longer "
                    "video, or a smaller --context_lengths_max"
                )
            for chunk in stream:
                yield torch.from_numpy(chunk.frames).to(device)


class GeneratedHaystack:
    """Scenes of moving textures, shapes, text and gradients, drawn when they are needed.

    Args:
        seconds: of the whole video, one frame each: all lengths look at the same one, more or less closely.
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
        """uint8 [F, S, S, 3] at a time, drawn on `device`, `length` frames in all. Raises `VideoError` for more than
        there are.
        """
        if length > self.seconds:
            raise VideoError(f"the haystack has {self.seconds} frames; {length} need a larger --haystack_seconds")
        numbers = torch.from_numpy(self.numbers())
        chosen = numbers[np.linspace(0, self.seconds - 1, length, dtype=int)]
        for part in chosen.split(CHUNK):
            yield draw(part, processor.side, device)
