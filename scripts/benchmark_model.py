"""Shared by the parts of `scripts/benchmark.py`: a model with random weights, frames in host memory, timers and peaks.

Everything goes through the public API: `model.summarize` on 8-bit frames, then `model.generate(..., memory=...)`.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from videoxl import LlavaQwenForCausalLM, VideoMemory, VideoXLConfig
from videoxl.constants import IMAGE_TOKEN_INDEX
from videoxl.cost.estimate import GIB, estimate
from videoxl.media.pixels import VideoXLImageProcessor
from videoxl.model.shape import model_shape

PREFIX, QUESTION = 14, 42  # tokens of the published quick start's prompt before and after the video
Row = dict[str, float | int | str | None]


@dataclass
class HostFrames:
    """Random 8-bit frames in host memory, in the form that a decoder hands them over."""

    frames: torch.Tensor
    processor: VideoXLImageProcessor

    @property
    def timestamps(self) -> list[float]:
        return [float(i) for i in range(len(self.frames))]

    @property
    def indices(self) -> list[int]:
        return list(range(len(self.frames)))

    def pixels(self, device, dtype, part=slice(None)) -> torch.Tensor:
        return self.processor.normalize(self.frames[part].to(device, non_blocking=True), dtype)


@dataclass
class Bench:
    """A model with random weights, and the options of the command line."""

    model: LlavaQwenForCausalLM
    ratio: int = 8
    frames: Sequence[int] | None = None
    new_tokens: int = 128
    rounds: int = 3
    warm_up: bool = True
    video: Path | None = None
    backend: str = "pyav"
    sampling: str = "uniform"
    _memories: dict[int, VideoMemory] = field(default_factory=dict)

    def __post_init__(self):
        self.device, self.dtype = self.model.device, self.model.dtype
        words = min(1000, self.model.config.vocab_size)
        generator = torch.Generator().manual_seed(0)
        self.prefix = torch.randint(0, words, (PREFIX,), generator=generator)
        question = torch.randint(0, words, (QUESTION,), generator=generator)
        prompt = torch.cat([self.prefix, torch.tensor([IMAGE_TOKEN_INDEX]), question])
        self.prompt = prompt.unsqueeze(0).to(self.device)

    def timed(self, work: Callable, *arguments):
        """(seconds, result) of `work`; waits for the device before and after."""
        self._wait()
        start = time.perf_counter()
        result = work(*arguments)
        self._wait()
        return time.perf_counter() - start, result

    def median(self, work: Callable, *arguments) -> float:
        """Median seconds of `rounds` runs, after one that warms up kernels and the allocator."""
        if self.warm_up:
            work(*arguments)
        return statistics.median(self.timed(work, *arguments)[0] for _ in range(self.rounds))

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def forget_peak(self, memories: bool = True) -> None:
        """Reset the peak; with `memories`, drop the kept memories first."""
        if memories:
            self._memories.clear()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peak(self) -> float | None:
        return torch.cuda.max_memory_allocated() / GIB if self.device.type == "cuda" else None

    def host_frames(self, number: int) -> HostFrames:
        side = self.model.model.vision_tower.image_size
        generator = torch.Generator().manual_seed(number)
        frames = torch.randint(0, 256, (number, side, side, 3), dtype=torch.uint8, generator=generator)
        if self.device.type == "cuda":
            frames = frames.pin_memory()
        return HostFrames(frames, VideoXLImageProcessor(side))

    def read(self, video, ratio: int | None = None) -> VideoMemory:
        return self.model.summarize([video], prefix_ids=self.prefix, ratio=self.ratio if ratio is None else ratio)

    def memory(self, frames: int) -> VideoMemory:
        """A memory of random frames, kept for the parts that only ask."""
        if frames not in self._memories:
            self._memories[frames] = self.read(self.host_frames(frames))
        return self._memories[frames]

    def answer(self, memory: VideoMemory, tokens: int, rows: int = 1) -> int:
        """Number of new tokens per row; equals `tokens`, since the model has no end token."""
        prompt = self.prompt.repeat(rows, 1)
        output = self.model.generate(prompt, memory=memory, max_new_tokens=tokens, do_sample=False)
        return output.shape[1] - (prompt.shape[1] - 1 + memory.num_visual_tokens)

    def first_logits(self, memory: VideoMemory) -> torch.Tensor:
        """Logits of an answer's first token, float32 [V]."""
        output = self.model.generate(
            self.prompt, memory=memory, max_new_tokens=1, do_sample=False, output_logits=True,
            return_dict_in_generate=True,
        )  # fmt: skip
        return output.logits[0][0].float()

    def predicted(self, frames: int, ratio: int):
        return estimate(model_shape(self.model.config), frames, ratio, str(self.dtype).removeprefix("torch."))


def random_model(config: VideoXLConfig, device: torch.device, dtype: torch.dtype) -> LlavaQwenForCausalLM:
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            model = LlavaQwenForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    model.generation_config.eos_token_id = None  # random weights must not end an answer early
    return model.eval()


def matrix_product_rate(device: torch.device, dtype: torch.dtype) -> float:
    """TFLOP/s of a large square product of random matrices: what the hardware gives in practice."""
    side = 8192 if device.type == "cuda" else 1024
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    times = []
    for _ in range(13):
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        left @ right
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return 2 * side**3 / statistics.median(times[3:]) / 1e12
