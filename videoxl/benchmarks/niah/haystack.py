"""Haystacks: videos that needles are inserted into. Here are video files; other kinds are registered.

Shape letters: F frames of a chunk, S side of the model's input.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from videoxl.errors import VideoError
from videoxl.media.choice import FrameChoice
from videoxl.media.pixels import VideoXLImageProcessor
from videoxl.media.stream import open_video
from videoxl.utils.digest import digest_file
from videoxl.utils.registry import Registry


class Haystack(Protocol):
    """Frames of one long video, sampled at any rate.

    Attributes:
        name: shown in results. identity: what tells it from another one of the same name.
    """

    name: str
    identity: str

    def chunks(
        self, length: int, processor: VideoXLImageProcessor, device: torch.device | str = "cpu"
    ) -> Iterator[Tensor]:
        """Chunks uint8 [F, S, S, 3], `length` frames in all, evenly spaced over the video. Raises `VideoError`."""


HAYSTACKS: Registry[type[Haystack]] = Registry(
    "haystack",
    "videoxl.haystacks",
    {
        "file": "videoxl.benchmarks.niah.haystack:FileHaystack",
        "generated": "videoxl.synth.haystack:GeneratedHaystack",
    },
)


class FileHaystack(Haystack):
    """Frames of a video file, evenly spaced over its whole length.

    Attributes:
        name: for people. identity: what tells it from another one of the same name.
    """

    def __init__(self, path: Path, backend: str = "pyav", timeout: float | None = 60.0):
        if not path.is_file():
            raise VideoError(f"no such haystack: {path}; leave --haystack_path out to generate one")
        self.name = path.name
        self.identity = f"{path.stat().st_size} bytes, {digest_file(path, limit=1 << 20)}"
        self._path, self._backend, self._timeout = path, backend, timeout

    def chunks(
        self, length: int, processor: VideoXLImageProcessor, device: torch.device | str = "cpu"
    ) -> Iterator[Tensor]:
        """Chunks uint8 [F, S, S, 3], `length` frames in all. Raises `VideoError` if the file has fewer."""
        choice = FrameChoice(num_frames=length)
        with open_video(str(self._path), processor, choice, backend=self._backend, timeout=self._timeout) as stream:
            if stream.num_frames < length:
                raise VideoError(
                    f"{self._path} has {stream.num_frames} frames; a haystack of {length} needs as many. Give a longer "
                    "video, or a smaller --context_lengths_max"
                )
            for chunk in stream:
                yield torch.as_tensor(chunk.frames).to(device)
