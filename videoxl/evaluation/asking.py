"""Questions about videos by path: a video is read once, whatever the order of its questions, and no question sees
another. The same question gets the same answer alone, in any order and after a resume.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from videoxl.conversation import join_prompt_ids
from videoxl.errors import CheckpointError, DataError, MemoryLimitError
from videoxl.image_processing import VideoXLImageProcessor
from videoxl.model.builder import load_pretrained_model
from videoxl.model.cache import SummaryCache
from videoxl.model.fingerprint import model_fingerprint
from videoxl.model.memory import VideoMemory
from videoxl.model.modeling import LlavaQwenForCausalLM
from videoxl.video import FrameChoice, FrameStream, open_video

GIB = 1 << 30
GREEDY = {"do_sample": False}


@dataclass(frozen=True)
class Reading:
    """How videos are read.

    Attributes:
        choice: which frames. ratio: one compression ratio for all. backend, timeout: as in `open_video`.
    """

    choice: FrameChoice
    ratio: int = 8
    backend: str = "pyav"
    timeout: float | None = 60.0


class VideoAsker:
    """A model with the memories of the videos it was asked about last.

    Args:
        memory_bytes: what all kept memories may take together; the newest one is kept whatever it takes.
    """

    def __init__(
        self,
        tokenizer,
        model: LlavaQwenForCausalLM,
        image_processor: VideoXLImageProcessor,
        reading: Reading,
        memory_bytes: int = 4 * GIB,
    ):
        self.tokenizer = tokenizer
        self.model = model
        self.image_processor = image_processor
        self.reading = reading
        self.memory_bytes = memory_bytes
        self._memories: OrderedDict[tuple[str, tuple[int, ...]], VideoMemory] = OrderedDict()

    def identity(self) -> dict[str, str]:
        """What makes results of two runs comparable: weights, precision and frames' decoder, not a folder's name."""
        return {**model_fingerprint(self.model), "backend": self.reading.backend}

    def ids(self, text: str) -> list[int]:
        """Ids of a text in which `<image>` is text, too."""
        return self.tokenizer(text).input_ids if text else []

    def memory(self, path: str | Path, before: str) -> VideoMemory:
        """The memory of a video behind the text `before`, read now if it is not held.

        Raises:
            VideoError: it cannot be read. MemoryLimitError: it does not fit on the GPU, even without other memories.
        """
        prefix = self.ids(before)
        key = (str(path), tuple(prefix))
        if key in self._memories:
            self._memories.move_to_end(key)
            return self._memories[key]
        with self.open(path) as stream:
            try:
                memory = self.model.summarize(stream, prefix_ids=prefix, ratio=self.reading.ratio)
            except MemoryLimitError:  # raised before a frame is read: what other videos hold may be in its place
                if not self._memories:
                    raise
                self._memories.clear()
                memory = self.model.summarize(stream, prefix_ids=prefix, ratio=self.reading.ratio)
        self._memories[key] = memory
        while len(self._memories) > 1 and self.held_bytes > self.memory_bytes:
            self._memories.popitem(last=False)
        return memory

    def open(self, path: str | Path) -> FrameStream:
        """The chosen frames of a video. Raises `VideoError`."""
        reading = self.reading
        return open_video(
            str(path), self.image_processor, reading.choice, backend=reading.backend, timeout=reading.timeout
        )

    def pixels(self, path: str | Path) -> Tensor:
        """All of them as pixel values [F, 3, S, S] on the CPU, for a prompt with several visual inputs."""
        with self.open(path) as stream:
            return torch.cat([chunk.pixels(torch.device("cpu"), torch.float32) for chunk in stream])

    @property
    def held_bytes(self) -> int:
        """Bytes that all kept memories take on the device."""
        return sum(memory.cache.allocated_bytes for memory in self._memories.values())

    def facts(self, memory: VideoMemory) -> dict:
        """What an answer rests on, for its log: ratio, number of frames, seconds of each."""
        return {
            "beacon_ratio": self.reading.ratio,
            "frames": memory.num_frames,
            "timestamps": [round(time, 3) for time in memory.timestamps],
        }

    def ask(self, path: str | Path, before: str, behind: str, **generation) -> str:
        """The answer to one prompt: text, video, text."""
        return self.ask_memory(self.memory(path, before), behind, **generation)

    def ask_memory(self, memory: VideoMemory, behind: str, **generation) -> str:
        """The same about a memory. `generation`: arguments of `generate`; greedy by default."""
        prompt = torch.tensor([join_prompt_ids(memory.prefix_ids, self.ids(behind))])
        output = self.model.generate(prompt, memory=memory, **{**GREEDY, **generation})
        return self.decode(output[0, prompt.shape[1] - 1 + memory.num_visual_tokens :])

    def decode(self, ids: Tensor) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True).strip()

    @torch.inference_mode()
    def score(self, cache: SummaryCache, ids: Sequence[int], continuation: Sequence[int]) -> tuple[float, bool]:
        """Log-likelihood of a continuation behind what a cache holds and `ids`, which are not read yet.

        Returns:
            (sum of the natural logarithms of its tokens' probabilities, whether each is the likeliest one). The cache
            grows: hand in a fork.

        Raises:
            DataError: there is no token to score.
        """
        if not continuation:
            raise DataError("an empty continuation has no likelihood; check the task's doc_to_target or doc_to_choice")
        inner = self.model.model
        tokens = torch.tensor([[*ids, *continuation]], device=inner.input_device)
        hidden = inner.text_step(inner.embed_tokens(tokens), cache)
        logits = self.model.lm_head(hidden[0, -len(continuation) - 1 : -1]).float()
        wanted = tokens[0, -len(continuation) :].to(logits.device)
        chosen = logits.log_softmax(dim=-1).gather(1, wanted[:, None])
        return float(chosen.sum()), bool((logits.argmax(dim=-1) == wanted).all())


def load_asker(
    model: str | Path,
    reading: Reading,
    memory_gb: float = 4.0,
    device: str = "auto",
    dtype: str = "auto",
    **loading,
) -> VideoAsker:
    """Load a checkpoint to ask. Raises `CheckpointError` and `ConfigError`; see `load_pretrained_model`."""
    if memory_gb < 0:
        raise DataError(f"{memory_gb} GB cannot hold memories; give 0 to keep only the newest, or more")
    try:
        tokenizer, net, processor, _ = load_pretrained_model(model, device_map=device, torch_dtype=dtype, **loading)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; evaluation needs the folder of a Video-XL checkpoint") from error
    return VideoAsker(tokenizer, net, processor, reading, int(memory_gb * GIB))
