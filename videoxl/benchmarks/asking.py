"""Asks questions about videos by path. A video is read once while its memory is kept, and no question sees another:
an answer does not depend on the order of questions or on a resume.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from videoxl.cache.fingerprint import model_fingerprint
from videoxl.chat import PromptText
from videoxl.errors import CheckpointError, DataError, MemoryLimitError
from videoxl.media.choice import FrameChoice
from videoxl.media.decoders import check_decoder
from videoxl.media.pictures import is_picture_file
from videoxl.model.memory import VideoMemory
from videoxl.session import VideoXL

GIB = 1 << 30


@dataclass(frozen=True)
class Reading:
    """How videos are read.

    Attributes:
        choice: which frames. ratio: one compression ratio for all. backend, timeout: as in `open_video`.
        compressor: the method's name; None: the checkpoint's own.

    Raises `VideoError` for an unknown backend.
    """

    choice: FrameChoice
    ratio: int = 8
    backend: str = "pyav"
    timeout: float | None = 60.0
    compressor: str | None = None

    def __post_init__(self):
        check_decoder(self.backend)  # else every video would count as unreadable

    @property
    def options(self) -> dict[str, Any]:
        """These settings as options of `VideoXL.read`."""
        method = {"ratio": self.ratio, "compressor": self.compressor}
        return {"choice": self.choice, "backend": self.backend, "timeout": self.timeout, **method}

    def options_for(self, sources: Sequence[Any]) -> dict[str, Any]:
        """The options that `VideoXL.ask` accepts for these sources: none for text, no frame choice without a video."""
        if not sources:
            return {}
        films = [source for source in sources if isinstance(source, str) and not is_picture_file(Path(source))]
        return {name: value for name, value in self.options.items() if films or name != "choice"}

    @property
    def named_method(self) -> dict[str, str]:
        """The compressor's name for result files, if one was named: older files have no such entry."""
        return {"compressor": self.compressor} if self.compressor else {}


class VideoAsker:
    """A model with the memories of the videos it was asked about last.

    Args:
        memory_bytes: most bytes for all kept memories; the newest one is kept whatever its size.
    """

    def __init__(self, session: VideoXL, reading: Reading, memory_bytes: int = 4 * GIB):
        self.session = session
        self.reading = reading
        self.memory_bytes = memory_bytes
        self._memories: OrderedDict[tuple[str, str], VideoMemory] = OrderedDict()

    def identity(self) -> dict[str, str]:
        """Facts that must be equal to compare two runs: weights, precision and video decoder, not the folder's name."""
        facts = model_fingerprint(self.session.model)
        return {**facts, "backend": self.reading.backend, **self.reading.named_method}

    def memory(self, path: str | Path, prompt: PromptText) -> VideoMemory:
        """The memory of a video, read after the prompt's prefix; reads the video if its memory is not kept.

        Raises:
            VideoError: it cannot be read. MemoryLimitError: it does not fit on the GPU, even without other memories.
        """
        key = (str(path), prompt.prefix)
        if key in self._memories:
            self._memories.move_to_end(key)
            return self._memories[key]
        try:
            memory = self.session.read(path, prompt=prompt, **self.reading.options)
        except MemoryLimitError:  # raised before a frame is read; dropping other memories may make room
            if not self._memories:
                raise
            self._memories.clear()
            memory = self.session.read(path, prompt=prompt, **self.reading.options)
        self._memories[key] = memory
        while len(self._memories) > 1 and self.held_bytes > self.memory_bytes:
            self._memories.popitem(last=False)
        return memory

    @property
    def held_bytes(self) -> int:
        """Bytes on the device of all kept memories."""
        return sum(memory.cache.allocated_bytes for memory in self._memories.values())

    def facts(self, memory: VideoMemory) -> dict:
        """Facts about an answer for its log: ratio, number of frames, their times in seconds."""
        return {
            "beacon_ratio": self.reading.ratio,
            **self.reading.named_method,
            "frames": memory.num_frames,
            "timestamps": [round(time, 3) for time in memory.timestamps],
        }

    def ask(self, source: str | Path | VideoMemory, prompt: PromptText, **generation: Any) -> str:
        """The greedy answer to one prompt about a video or a memory. `generation`: arguments of `generate`."""
        memory = source if isinstance(source, VideoMemory) else self.memory(source, prompt)
        return self.session.ask(memory, prompt, **generation).text


def load_asker(
    model: str | Path,
    reading: Reading,
    memory_gb: float = 4.0,
    device: str = "auto",
    dtype: str = "auto",
    **loading: Any,
) -> VideoAsker:
    """Load a checkpoint to ask. Raises `CheckpointError` and `ConfigError`; see `VideoXL.from_pretrained`."""
    if memory_gb < 0:
        raise DataError(f"{memory_gb} GB cannot hold memories; give 0 (keep only the newest) or more")
    try:
        session = VideoXL.from_pretrained(model, device, dtype, **loading)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; evaluation needs the folder of a Video-XL checkpoint") from error
    return VideoAsker(session, reading, int(memory_gb * GIB))
