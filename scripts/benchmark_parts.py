"""The parts of `scripts/benchmark.py`: each measures one thing and returns rows of numbers.

Times are in seconds, sizes in GiB of 2^30 bytes.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from benchmark_four_bit import four_bit
from benchmark_model import Bench, HostFrames, Row
from benchmark_peers import peers
from benchmark_scaling import fit

from videoxl import VideoMemory
from videoxl.cost.estimate import GIB
from videoxl.media.choice import FrameChoice
from videoxl.media.pixels import VideoXLImageProcessor
from videoxl.media.stream import FrameStream, open_video
from videoxl.model.decoder.fp8 import to_fp8
from videoxl.model.visual import chunk_frames, encode_frames, frame_tokens

ROWS = 8  # questions asked at once


def summarise(bench: Bench) -> list[Row]:
    """From pixels in host memory to the first token of an answer; encoding also alone. Medians."""
    rows = []
    for frames in bench.frames or (128, 512, 2048):
        video = bench.host_frames(frames)
        bench.forget_peak()
        encode_s = bench.median(encode_all, bench, video)
        totals, firsts, held = [], [], None
        for round_ in range(bench.rounds + bench.warm_up):
            held = None  # free the previous memory, so that two are never on the device
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
    """New tokens a second after a long and a short video: one question, and several at once on one memory."""
    rows = []
    for frames in bench.frames or (2048, 128):
        held = bench.memory(frames)
        for number in (1, ROWS):
            bench.forget_peak(memories=False)
            bench.answer(held, bench.new_tokens, number)  # kernels, graphs, room after the cache
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
    """Time of a further question on a memory, and of saving and loading the memory's file."""
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


def fp8(bench: Bench) -> list[Row]:
    """Reading with the decoder's products in bf16 and in FP8, and the relative error of the first token's logits.

    The model stays in FP8, so this part comes last. With random weights the error says little about answers.
    """
    lengths = list(bench.frames or (128, 512, 2048))
    videos = [bench.host_frames(frames) for frames in lengths]
    found: dict[bool, list[tuple[float, torch.Tensor, float | None]]] = {False: [], True: []}
    for in_fp8 in (False, True):
        if in_fp8:
            to_fp8(bench.model)
        for video in videos:
            bench.forget_peak()
            seconds = bench.median(bench.read, video)
            logits = bench.first_logits(bench.read(video))
            found[in_fp8].append((seconds, logits, bench.peak()))
    rows = []
    for frames, (plain_s, plain, _), (fp8_s, eight, peak) in zip(lengths, *found.values()):
        rows.append(
            {
                "frames": frames,
                "ratio": bench.ratio,
                "read_s": plain_s,
                "fp8_read_s": fp8_s,
                "speedup": plain_s / fp8_s,
                "logits_error": ((eight - plain).norm() / plain.norm()).item(),
                "same_token": int(eight.argmax() == plain.argmax()),
                "fp8_peak_gib": peak,
            }
        )
    return rows


def pipeline(bench: Bench) -> list[Row]:
    """From a file to the first token of an answer: each half alone, then both at once as `videoxl ask` runs them."""
    from benchmark_video import made

    video = bench.video or made(1200)
    processor = VideoXLImageProcessor(bench.model.model.vision_tower.image_size)
    rows = []
    for frames in bench.frames or (1024,):
        choice = FrameChoice(num_frames=frames, sampling=bench.sampling)
        decode_s, found = bench.timed(decoded, bench, video, processor, choice)
        held = HostFrames(found, processor)
        bench.answer(bench.read(held), 1)  # kernels are loaded before anything is timed
        answer_s = bench.timed(lambda held=held: bench.answer(bench.read(held), 1))[0]
        whole_s = bench.timed(lambda choice=choice: bench.answer(read_file(bench, video, processor, choice), 1))[0]
        rows.append(
            {
                "backend": bench.backend,
                "sampling": bench.sampling,
                "frames": len(found),
                "decode_s": decode_s,
                "read_and_first_token_s": answer_s,
                "file_to_first_token_s": whole_s,
                "to_slower_half": whole_s / max(decode_s, answer_s),
            }
        )
    return rows


def opened(bench: Bench, video: Path, processor: VideoXLImageProcessor, choice: FrameChoice) -> FrameStream:
    return open_video(str(video), processor, choice, bench.backend, timeout=60, device=bench.device)


def decoded(bench: Bench, video: Path, processor: VideoXLImageProcessor, choice: FrameChoice) -> torch.Tensor:
    with opened(bench, video, processor, choice) as stream:
        return torch.cat([torch.as_tensor(chunk.frames).cpu() for chunk in stream])


def read_file(bench: Bench, video: Path, processor: VideoXLImageProcessor, choice: FrameChoice) -> VideoMemory:
    with opened(bench, video, processor, choice) as stream:
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


PARTS: dict[str, Callable[[Bench], list[Row]]] = {
    "summarise": summarise,
    "memory": memory,
    "decode": decode,
    "question": question,
    "pipeline": pipeline,
    "scaling": scaling,
    "peers": peers,
    "four_bit": four_bit,
    "fp8": fp8,
}
