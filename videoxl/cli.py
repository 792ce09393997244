"""The `videoxl` command: ask a video, keep its memory, look at files, estimate cost.

Answers, the line of numbers behind them and tables go to standard output, progress and notes to standard
error. Mistakes end with one line and status 2.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Annotated

import torch
import transformers
import typer
from transformers import TextStreamer
from transformers.generation.streamers import BaseStreamer

from videoxl import VideoMemory, __version__
from videoxl.cli_output import notes, numbers_line, peak_memory, print_facts, progress_bar, say
from videoxl.conversation import join_prompt_ids, video_prompt_ids
from videoxl.describe import describe
from videoxl.errors import CheckpointError, ConfigError, PromptError, VideoError, VideoXLError
from videoxl.estimate import BYTES, estimate
from videoxl.model.builder import load_pretrained_model
from videoxl.model.configuration import VideoXLConfig
from videoxl.model.memory_file import is_memory_file
from videoxl.timing import StageTimer
from videoxl.video import FrameChoice, open_video

BUNDLED_MODEL = Path(__file__).resolve().parent.parent / "assets" / "videoxl-tiny"
DEFAULT_FRAMES = 128

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help=__doc__.split("\n")[0],
)

Model = Annotated[Path | None, typer.Option("--model", help="Checkpoint folder (default: the bundled model).")]
Frames = Annotated[int | None, typer.Option(help=f"Frames, uniform over the video (default {DEFAULT_FRAMES}).")]
Fps = Annotated[float | None, typer.Option(help="Frames a second instead of --frames.")]
MaxFrames = Annotated[int | None, typer.Option(help="Upper bound for --fps.")]
Start = Annotated[float | None, typer.Option(help="First second to read.")]
End = Annotated[float | None, typer.Option(help="Second to stop at.")]
Ratio = Annotated[
    int | None, typer.Option(help="Visual tokens that one cached position sums up (default: the model's, or 8).")
]
Backend = Annotated[str, typer.Option(help="Video decoder: pyav, decord or torchcodec.")]
Timeout = Annotated[float, typer.Option(help="Seconds without a frame after which decoding is ended.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda:0, ...")]
Dtype = Annotated[str, typer.Option(help="auto, bfloat16, float16 or float32.")]
Fp8 = Annotated[bool, typer.Option("--fp8", help="The decoder's products in FP8 (Ada and Hopper GPUs): less exact.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@app.callback(invoke_without_command=True)
def show_version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(f"videoxl {__version__}")
        raise typer.Exit


@app.command()
def ask(
    video: Annotated[Path, typer.Argument(help="A video file, or a memory that `videoxl summarize` wrote.")],
    question: Annotated[str, typer.Argument(help="What to ask.")],
    model: Model = None,
    frames: Frames = None,
    fps: Fps = None,
    max_frames: MaxFrames = None,
    start: Start = None,
    end: End = None,
    ratio: Ratio = None,
    backend: Backend = "pyav",
    timeout: Timeout = 60.0,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.", min=1)] = 1024,
    temperature: Annotated[float, typer.Option(help="0: always the likeliest token.", min=0)] = 0.0,
    stream: Annotated[bool, typer.Option("--stream", help="Print the answer as it is made.")] = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
    fp8: Fp8 = False,
    as_json: AsJson = False,
) -> None:
    """Answer a question about a video."""
    if not question.strip():
        raise PromptError("the question is empty")
    _check_input(video)
    choice = _choice(frames, fps, max_frames, start, end)
    if is_memory_file(video) and (choice, ratio) != (None, None):
        raise PromptError(
            "a memory has its frames and its ratio already; leave --frames, --fps, --max-frames, --start, --end, "
            "--ratio out"
        )
    tokenizer, net, processor = _load(model, device, dtype, fp8)
    timer = StageTimer(net.device)
    _, behind = video_prompt_ids(tokenizer, question)
    if is_memory_file(video):
        memory, said = VideoMemory.load(video, net), []
    else:
        memory, said = _summarize(video, choice, ratio, backend, timeout, tokenizer, net, processor, timer)
    prompt = torch.tensor([join_prompt_ids(memory.prefix_ids, behind)])
    sampling = {"do_sample": temperature > 0} | ({"temperature": temperature} if temperature > 0 else {})
    streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True) if stream and not as_json else None
    first = _FirstToken(timer, streamer)
    output = net.generate(prompt, memory=memory, max_new_tokens=max_new_tokens, streamer=first, **sampling)
    new = output[0, prompt.shape[1] - 1 + memory.num_visual_tokens :]
    answer = tokenizer.decode(new, skip_special_tokens=True).strip()
    report = {
        "video": str(video),
        "question": question,
        "answer": answer,
        "model": str(model or BUNDLED_MODEL),
        **_numbers(memory),
        "new_tokens": len(new),
        "seconds": {stage: round(seconds, 3) for stage, seconds in timer.seconds.items()},
        "peak_memory_bytes": peak_memory(net.device),
        "notes": said + _model_notes(net),
    }
    if as_json:
        print(json.dumps(report))
        return
    if streamer is None:
        print(answer)
    print(numbers_line(report))


@app.command()
def summarize(
    video: Annotated[Path, typer.Argument(help="A video file.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Memory file to write.")],
    model: Model = None,
    frames: Frames = None,
    fps: Fps = None,
    max_frames: MaxFrames = None,
    start: Start = None,
    end: End = None,
    ratio: Ratio = None,
    backend: Backend = "pyav",
    timeout: Timeout = 60.0,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
    fp8: Fp8 = False,
) -> None:
    """Read a video once and keep its memory in a file, to be asked any number of times."""
    _check_input(video)
    if is_memory_file(video):
        raise PromptError(f"{video} is a memory already; ask it with `videoxl ask`")
    if output.exists() and not force:
        raise PromptError(f"{output} exists; give --force to replace it")
    if not output.parent.is_dir() or output.is_dir():
        raise PromptError(
            f"cannot write {output}: {'it is a folder' if output.is_dir() else 'its folder does not exist'}"
        )
    choice = _choice(frames, fps, max_frames, start, end)
    tokenizer, net, processor = _load(model, device, dtype, fp8)
    timer = StageTimer(net.device)
    memory, _ = _summarize(video, choice, ratio, backend, timeout, tokenizer, net, processor, timer)
    with timer.stage("save"):
        memory.save(output, overwrite=force)
    print(f"wrote {output} ({output.stat().st_size / (1 << 20):.1f} MiB)")
    print(numbers_line({**_numbers(memory), "seconds": timer.seconds, "peak_memory_bytes": peak_memory(net.device)}))


@app.command()
def info(
    path: Annotated[Path, typer.Argument(help="A checkpoint folder, a memory file or a video.")],
    as_json: AsJson = False,
) -> None:
    """Describe a checkpoint, a memory or a video."""
    facts = describe(path)
    if as_json:
        print(json.dumps(facts))
        return
    print_facts(facts)


@app.command("estimate")
def estimate_command(
    frames: Annotated[int, typer.Option(help="Frames of the video.", min=1)],
    ratio: Annotated[int, typer.Option(help="Compression ratio.")] = 8,
    model: Annotated[
        Path | None,
        typer.Option("--model", help="Checkpoint folder or a file of configs/ (default: the bundled tiny model)."),
    ] = None,
    dtype: Annotated[str, typer.Option(help="bfloat16, float16 or float32.")] = "bfloat16",
    as_json: AsJson = False,
) -> None:
    """Predict GPU memory and cached positions of a video before running it."""
    if dtype not in BYTES:
        raise PromptError(f"dtype {dtype!r} is not known; use {', '.join(BYTES)}")
    cost = estimate(_read_config(model or BUNDLED_MODEL), frames, ratio, dtype)
    within = cost.highest_position < cost.trained_positions
    facts = {
        "model": str(model or BUNDLED_MODEL),
        "frames": cost.frames,
        "ratio": cost.ratio,
        "visual_tokens": cost.visual_tokens,
        "cached_positions": cost.cached_positions,
        "highest_position": cost.highest_position,
        "trained_positions": cost.trained_positions,
        "within_trained_positions": within,
        "weights_bytes": cost.weights,
        "cache_bytes": cost.cache,
        "work_bytes": cost.work,
        "allowance_bytes": cost.total - cost.weights - cost.cache - cost.work,
        "total_bytes": cost.total,
        "petaflop": round(cost.flop / 1e15, 3),
    }
    if as_json:
        print(json.dumps(facts))
        return
    print_facts(facts)
    if not within:
        say(
            f"note: positions reach {cost.highest_position}, the model was trained to {cost.trained_positions}; "
            "a larger ratio or fewer frames stay within"
        )


def main() -> None:
    """Entry point: typed errors become one line and status 2."""
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    warnings.showwarning = lambda message, *_, **__: say(f"note: {message}")
    warnings.filterwarnings("ignore", category=FutureWarning)
    try:
        app()  # typer itself ends wrong usage with status 2, and Ctrl-C with 130
    except VideoXLError as error:
        say(f"error: {error}")
        sys.exit(2)
    except torch.OutOfMemoryError:
        say("error: the GPU is out of memory; read fewer frames or use a larger ratio (`videoxl estimate` predicts it)")
        sys.exit(2)


# -- what the commands share -----------------------------------------------------------------------------------------


class _FirstToken(BaseStreamer):
    """Splits the seconds of answering at the first token; hands everything on to another streamer."""

    def __init__(self, timer: StageTimer, then: TextStreamer | None):
        self._timer, self._then, self._puts = timer, then, 0
        self._open("first token")

    def _open(self, name: str) -> None:
        self._stage = self._timer.stage(name)
        self._stage.__enter__()

    def put(self, value: torch.Tensor) -> None:
        self._puts += 1
        if self._puts == 2:  # the first call hands over the prompt
            self._stage.__exit__(None, None, None)
            self._open("answer")
        if self._then is not None:
            self._then.put(value)

    def end(self) -> None:
        self._stage.__exit__(None, None, None)
        if self._then is not None:
            self._then.end()


def _choice(frames, fps, max_frames, start, end) -> FrameChoice | None:
    """The frames asked for; None where nothing was said."""
    if (frames, fps, max_frames, start, end) == (None,) * 5:
        return None
    if frames is None and fps is None:
        frames = DEFAULT_FRAMES
    return FrameChoice(frames, fps, max_frames, start or 0.0, end)


def _load(model: Path | None, device: str, dtype: str, fp8: bool):
    folder = model or BUNDLED_MODEL
    if model is None and not folder.is_dir():
        raise CheckpointError("the bundled model is not here (it lies in the repository); give --model FOLDER")
    _check_device(device)
    with notes.status(f"loading {folder.name}"):
        tokenizer, net, processor, _ = load_pretrained_model(folder, device_map=device, torch_dtype=dtype, load_fp8=fp8)
    for note in _model_notes(net):
        say(f"note: {note}")
    return tokenizer, net, processor


def _check_input(video: Path) -> None:
    """Catch a wrong path before a large model is loaded."""
    if not video.exists():
        raise VideoError(f"no such video: {video}")
    if video.is_dir():
        raise VideoError(f"{video} is a folder; give a video file")


def _check_device(device: str) -> None:
    if device == "auto":
        return
    try:
        kind = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"device {device!r} is not known; use auto, cpu or cuda:0") from error
    if kind.type == "cuda" and (kind.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device {device!r} is not here; this machine has {torch.cuda.device_count()} GPU(s)")


def _summarize(
    video, choice, ratio, backend, timeout, tokenizer, net, processor, timer
) -> tuple[VideoMemory, list[str]]:
    choice = choice or FrameChoice(DEFAULT_FRAMES)
    ratio = ratio if ratio is not None else (net.config.beacon_ratio[0] if len(net.config.beacon_ratio) == 1 else 8)
    prefix, _ = video_prompt_ids(tokenizer, "")
    with timer.stage("decode"):
        source = open_video(str(video), processor, choice, backend=backend, timeout=timeout)
    with source, progress_bar(source.num_frames) as advance:
        memory = net.summarize(source, prefix_ids=prefix, ratio=ratio, progress=advance, timer=timer)
    trained, reached = net.config.max_position_embeddings, memory.summary_length + net.config.beacon_window
    if reached > trained:
        say(f"note: positions reach {reached}, the model was trained to {trained}; see `videoxl estimate`")
    return memory, source.notes


def _numbers(memory: VideoMemory) -> dict:
    facts = memory.info()
    return {
        "frames": facts["frames"],
        "visual_tokens": facts["visual_tokens"],
        "cached_positions": memory.summary_length,
        "ratios": facts["window_ratios"] or memory.reader.planner.chooser.ratios,
    }


def _model_notes(net) -> list[str]:
    note = getattr(net.config, "model_note", None)
    return [note] if note else []


def _read_config(path: Path) -> VideoXLConfig:
    if not path.exists():
        raise CheckpointError(f"no such checkpoint or configuration: {path}")
    try:
        return VideoXLConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read the configuration {path}: {error}") from error


if __name__ == "__main__":
    main()
