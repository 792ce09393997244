"""The parts of `scripts/benchmark.py`: each measures one thing and returns rows of numbers.

Everything goes through the public surface: `model.summarize` on 8-bit frames that lie in host memory, then
`model.generate(..., memory=...)`. Times are in seconds, sizes in GiB of 2^30 bytes.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from benchmark_scaling import fit
from transformers import Qwen2Config, Qwen2ForCausalLM
from transformers.generation.streamers import BaseStreamer

from videoxl import LlavaQwenForCausalLM, VideoMemory, VideoXLConfig
from videoxl.constants import IMAGE_TOKEN_INDEX
from videoxl.estimate import GIB, estimate
from videoxl.image_processing import VideoXLImageProcessor
from videoxl.model.memory import frame_tokens
from videoxl.model.runner import chunk_frames, encode_frames
from videoxl.video import FrameChoice, open_video

PREFIX, QUESTION = 14, 42  # tokens of the published quick start's prompt before and behind the video
ROWS = 8  # questions asked at once
Row = dict[str, float | int | None]


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
    """A model with random weights, and what the command line says about it."""

    model: LlavaQwenForCausalLM
    ratio: int = 8
    frames: Sequence[int] | None = None
    new_tokens: int = 128
    rounds: int = 3
    warm_up: bool = True
    video: Path | None = None
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
        """(seconds, result); the device has nothing to do before and after."""
        self._wait()
        start = time.perf_counter()
        result = work(*arguments)
        self._wait()
        return time.perf_counter() - start, result

    def median(self, work: Callable, *arguments) -> float:
        """Seconds, of `rounds` behind one that warms kernels and the allocator up."""
        if self.warm_up:
            work(*arguments)
        return statistics.median(self.timed(work, *arguments)[0] for _ in range(self.rounds))

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def forget_peak(self, memories: bool = True) -> None:
        """Begin a peak of its own; with `memories` those that are kept go first."""
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
        """Tokens made for each row, all that were asked for."""
        prompt = self.prompt.repeat(rows, 1)
        output = self.model.generate(prompt, memory=memory, max_new_tokens=tokens, do_sample=False)
        return output.shape[1] - (prompt.shape[1] - 1 + memory.num_visual_tokens)

    def predicted(self, frames: int, ratio: int):
        return estimate(self.model.config, frames, ratio, str(self.dtype).removeprefix("torch."))


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


# -- the parts -------------------------------------------------------------------------------------------------------


def summarise(bench: Bench) -> list[Row]:
    """From pixels in host memory to the first token of an answer; encoding also alone. Medians."""
    rows = []
    for frames in bench.frames or (128, 512, 2048):
        video = bench.host_frames(frames)
        bench.forget_peak()
        encode_s = bench.median(encode_all, bench, video)
        totals, firsts, held = [], [], None
        for round_ in range(bench.rounds + bench.warm_up):
            held = None  # else two would be on the device
            read_s, held = bench.timed(bench.read, video)
            first_s, _ = bench.timed(bench.answer, held, 1)
            if round_ >= bench.warm_up:
                totals.append(read_s + first_s)
                firsts.append(first_s)
        total_s, first_s = statistics.median(totals), statistics.median(firsts)
        cost = bench.predicted(frames, bench.ratio)
        rows.append(
            {
                "frames": frames,
                "ratio": bench.ratio,
                "visual_tokens": held.num_visual_tokens,
                "cached_positions": held.cache.get_query_offset(),
                "encode_s": encode_s,
                "summarise_s": total_s - first_s - encode_s,
                "first_token_s": first_s,
                "total_s": total_s,
                "peak_gib": bench.peak(),
                "estimated_gib": cost.total / GIB,
                "tflops": cost.flop / total_s / 1e12,
            }
        )
        held = None
    return rows


@torch.inference_mode()
def encode_all(bench: Bench, video: HostFrames) -> None:
    """The vision tower and the projector alone."""
    chunk = chunk_frames(bench.model.model)
    for start in range(0, len(video.frames), chunk):
        encode_frames(bench.model.model, video.pixels(bench.device, bench.dtype, slice(start, start + chunk)))


def memory(bench: Bench) -> list[Row]:
    """Peak of reading and asking, beside what `videoxl estimate` says."""
    rows = []
    for frames in bench.frames or (2048, 10_000):
        video = bench.host_frames(frames)
        bench.forget_peak()
        seconds, held = bench.timed(bench.read, video)
        bench.answer(held, 2)
        rows.append(
            {
                "frames": frames,
                "ratio": bench.ratio,
                "cached_positions": held.cache.get_query_offset(),
                "read_s": seconds,
                "peak_gib": bench.peak(),
                "estimated_gib": bench.predicted(frames, bench.ratio).total / GIB,
            }
        )
        del held
    return rows


def decode(bench: Bench) -> list[Row]:
    """New tokens a second behind a long and a short video: one question, and several at once on one memory."""
    rows = []
    for frames in bench.frames or (2048, 128):
        held = bench.memory(frames)
        for number in (1, ROWS):
            bench.forget_peak(memories=False)
            bench.answer(held, bench.new_tokens, number)  # kernels, graphs, room behind the cache
            first = bench.median(bench.answer, held, 1, number)
            seconds, made = bench.timed(bench.answer, held, 1 + bench.new_tokens, number)
            rows.append(
                {
                    "frames": frames,
                    "cached_positions": held.cache.get_query_offset(),
                    "questions": number,
                    "tokens_per_s": number * (made - 1) / (seconds - first),
                    "peak_gib": bench.peak(),
                }
            )
    return rows


def question(bench: Bench) -> list[Row]:
    """The second question on a held memory, and the memory's file: written, and mapped again by another memory."""
    rows = []
    for frames in bench.frames or (2048,):
        held = bench.memory(frames)
        first = bench.median(bench.answer, held, 1)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "film.videomemory.safetensors"
            save_s, _ = bench.timed(held.save, path)
            load_s, _ = bench.timed(VideoMemory.load, path, bench.model)
            raw_s, content = bench.timed(path.read_bytes)
        rows.append(
            {
                "frames": frames,
                "first_token_s": first,
                "file_gib": len(content) / GIB,
                "save_s": save_s,
                "load_s": load_s,
                "plain_read_s": raw_s,
            }
        )
    return rows


def pipeline(bench: Bench) -> list[Row]:
    """From a file to a memory: each stage alone, then all together as `videoxl ask` runs them."""
    from benchmark_video import made

    video = bench.video or made(1200)
    processor = VideoXLImageProcessor(bench.model.model.vision_tower.image_size)
    rows = []
    for frames in bench.frames or (1024,):
        choice = FrameChoice(num_frames=frames)
        decode_s, found = bench.timed(decoded, video, processor, choice)
        held = HostFrames(found, processor)
        tokens = tokens_of(bench, held)
        summarise_tokens(bench, tokens)  # kernels are loaded before anything is timed
        encode_s = bench.timed(encode_all, bench, held)[0]
        summarise_s = bench.timed(summarise_tokens, bench, tokens)[0]
        whole_s = bench.timed(read_file, bench, video, processor, choice)[0]
        rows.append(
            {
                "frames": len(found),
                "decode_s": decode_s,
                "encode_s": encode_s,
                "summarise_s": summarise_s,
                "whole_s": whole_s,
                "to_slowest_stage": whole_s / max(decode_s, encode_s, summarise_s),
                "to_slower_half": whole_s / max(decode_s, encode_s + summarise_s),  # one decodes, one computes
            }
        )
    return rows


def decoded(video: Path, processor: VideoXLImageProcessor, choice: FrameChoice) -> torch.Tensor:
    with open_video(str(video), processor, choice, timeout=60) as stream:
        return torch.cat([torch.from_numpy(chunk.frames) for chunk in stream])


def read_file(bench: Bench, video: Path, processor: VideoXLImageProcessor, choice: FrameChoice) -> VideoMemory:
    with open_video(str(video), processor, choice, timeout=60) as stream:
        return bench.model.summarize(stream, prefix_ids=bench.prefix, ratio=bench.ratio)


@torch.inference_mode()
def tokens_of(bench: Bench, video: HostFrames) -> torch.Tensor:
    chunk = chunk_frames(bench.model.model)
    parts = range(0, len(video.frames), chunk)
    return torch.cat(
        [frame_tokens(bench.model, video.pixels(bench.device, bench.dtype, slice(p, p + chunk))) for p in parts]
    )


def summarise_tokens(bench: Bench, tokens: torch.Tensor) -> VideoMemory:
    held = VideoMemory.start(bench.model, bench.prefix, bench.ratio)
    for part in tokens.split(chunk_frames(bench.model.model)):
        held.extend_tokens(part)
    return held


def scaling(bench: Bench) -> list[Row]:
    """Time to read against frames and ratio, with the model a F + b F^2 / r that fits it."""
    lengths = sorted(bench.frames or (128, 256, 512, 1024, 2048, 4096))
    runs = [(frames, bench.ratio) for frames in lengths]
    runs += [(lengths[-2], ratio) for ratio in (2, 4, 16, 32) if ratio != bench.ratio and len(lengths) > 1]
    rows = []
    bench.read(bench.host_frames(min(lengths)))
    for frames, ratio in runs:
        video = bench.host_frames(frames)
        bench.forget_peak()
        seconds = bench.timed(bench.read, video, ratio)[0]  # the memory itself goes at once
        rows.append({"frames": frames, "ratio": ratio, "read_s": seconds, "peak_gib": bench.peak()})
    model = fit([(row["frames"], row["ratio"], row["read_s"]) for row in rows])
    return [{**row, "fitted_s": model.seconds(row["frames"], row["ratio"])} for row in rows]


class TokenClock(BaseStreamer):
    """When each new token was there."""

    def __init__(self):
        self.times: list[float] = []

    def put(self, value) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass


def peers(bench: Bench) -> list[Row]:
    """The same decoder without compression: transformers' own Qwen2 on as many visual tokens, vision not counted.

    As a user of transformers gets it: its SDPA path, `generate`, whatever kernels PyTorch picks.
    """
    config = plain_config(bench.model.config)
    before = torch.get_default_dtype()
    torch.set_default_dtype(bench.dtype)
    bench.forget_peak()
    bench.model.to("cpu")  # both would not fit beside such a cache
    rows = []
    try:
        with bench.device:
            plain = Qwen2ForCausalLM(config).eval()
        plain.generation_config.eos_token_id = None
        for frames in bench.frames or (2048,):
            tokens = bench.predicted(frames, bench.ratio).visual_tokens + PREFIX + QUESTION
            read_plain(plain, min(tokens, 2048), 4)  # kernels are loaded before anything is timed
            bench.forget_peak()
            started, times = read_plain(plain, tokens, 1 + bench.new_tokens)
            rows.append(
                {
                    "frames": frames,
                    "ratio": bench.ratio,
                    "tokens": tokens,
                    "prefill_s": times[0] - started,
                    "tokens_per_s": (len(times) - 1) / (times[-1] - times[0]),
                    "peak_gib": bench.peak(),
                }
            )
    finally:
        torch.set_default_dtype(before)
        bench.model.to(bench.device)
    return rows


def plain_config(config: VideoXLConfig) -> Qwen2Config:
    """The configuration of the decoder alone."""
    names = Qwen2Config().to_dict().keys() - {"model_type", "architectures", "dtype"}
    plain = Qwen2Config(**{name: value for name, value in config.to_dict().items() if name in names})
    plain._attn_implementation = "sdpa"
    return plain


def read_plain(plain: Qwen2ForCausalLM, tokens: int, new_tokens: int) -> tuple[float, list[float]]:
    """Moments: the start, and of each new token behind as many random embeddings."""
    embeds = torch.randn(1, tokens, plain.config.hidden_size, device=plain.device, dtype=plain.dtype) * 0.02
    mask = torch.ones(embeds.shape[:2], dtype=torch.long, device=plain.device)
    clock = TokenClock()
    if plain.device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    plain.generate(
        inputs_embeds=embeds,
        attention_mask=mask,
        max_new_tokens=new_tokens,
        do_sample=False,
        pad_token_id=0,
        streamer=clock,
    )
    return started, clock.times[-new_tokens:]


PARTS: dict[str, Callable[[Bench], list[Row]]] = {
    "summarise": summarise,
    "memory": memory,
    "decode": decode,
    "question": question,
    "pipeline": pipeline,
    "scaling": scaling,
    "peers": peers,
}
