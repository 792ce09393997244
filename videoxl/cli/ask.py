"""`videoxl ask` and `videoxl summarize`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from videoxl.cli.fetching import local_file
from videoxl.cli.options import (
    AllowPrivate,
    AsJson,
    Backend,
    Compressor,
    Device,
    Dtype,
    End,
    Fp8,
    Fps,
    Frames,
    MaxFrames,
    Model,
    Ratio,
    Sampling,
    Start,
    StoredShape,
    Timeout,
    Verify,
)
from videoxl.cli.output import FrameProgress, notes, numbers_line, say_notes
from videoxl.errors import PromptError

if TYPE_CHECKING:
    from videoxl.session import VideoXL


def ask(
    video: Annotated[
        str, typer.Argument(help="A video (file or URL), a picture, or a memory that `videoxl summarize` wrote.")
    ],
    question: Annotated[str, typer.Argument(help="What to ask.")],
    model: Model = None,
    frames: Frames = None,
    fps: Fps = None,
    max_frames: MaxFrames = None,
    start: Start = None,
    end: End = None,
    sampling: Sampling = None,
    stored_shape: StoredShape = False,
    ratio: Ratio = None,
    compressor: Compressor = None,
    backend: Backend = "pyav",
    timeout: Timeout = 60.0,
    allow_private: AllowPrivate = False,
    subtitles: Annotated[
        str | None,
        typer.Option(help="A file of subtitles, or own for the video's text stream; its lines go into the prompt."),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.", min=1)] = 1024,
    temperature: Annotated[
        float, typer.Option(help="0: always the likeliest token; higher: more varied answers.", min=0)
    ] = 0.0,
    seed: Annotated[int | None, typer.Option(help="Repeat a varied answer (with --temperature above 0).")] = None,
    stream: Annotated[bool, typer.Option("--stream", help="Print the answer while it is generated.")] = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
    fp8: Fp8 = False,
    verify: Verify = False,
    as_json: AsJson = False,
) -> None:
    """Answer a question about a video."""
    from videoxl.session.sources import as_sources, check_choice

    if not question.strip():
        raise PromptError("the question is empty")
    choice: dict[str, Any] = {
        "frames": frames, "fps": fps, "max_frames": max_frames, "start": start, "end": end, "sampling": sampling,
        "stored_shape": stored_shape or None,
    }  # fmt: skip
    source = local_file(video, allow_private)
    sources = as_sources(source)
    flags = {f"--{name.replace('_', '-')}": value for name, value in choice.items()}
    check_choice(sources, flags, {"--ratio": ratio, "--compressor": compressor})
    options: dict[str, Any] = {
        **choice, "ratio": ratio, "compressor": compressor, "backend": backend, "timeout": timeout,
        "max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed,
    }  # fmt: skip
    if subtitles is not None:
        from videoxl.session.subtitles import find_subtitles

        options["subtitles"] = find_subtitles(subtitles, sources, question)
    _check_choice(choice)
    session = load(model, device, dtype, fp8, verify)
    with FrameProgress() as advance:
        if stream and not as_json:
            pieces = session.stream(source, question, progress=advance, **options)
            for piece in pieces:
                print(piece, end="", flush=True)
            print()
            answer = pieces.answer
            assert answer is not None  # set once the iteration ends without an error
        else:
            answer = session.ask(source, question, progress=advance, **options)
    say_notes(answer.notes)
    report = {
        "video": str(video),
        "question": question,
        "answer": answer.text,
        "model": session.name,
        "frames": len(answer.frames),
        "visual_tokens": answer.visual_tokens,
        "cached_positions": answer.cached_positions,
        "ratios": list(answer.ratios),
        "compressor": answer.compressor,
        "new_tokens": answer.new_tokens,
        "seconds": {stage: round(seconds, 3) for stage, seconds in answer.seconds.items()},
        "peak_memory_bytes": answer.peak_memory_bytes,
        "notes": list(answer.notes),
    }
    if as_json:
        print(json.dumps(report))
        return
    if not stream:
        print(answer.text)
    print(numbers_line(report))


def summarize(
    video: Annotated[str, typer.Argument(help="A video file or a URL.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Memory file to write.")],
    model: Model = None,
    frames: Frames = None,
    fps: Fps = None,
    max_frames: MaxFrames = None,
    start: Start = None,
    end: End = None,
    sampling: Sampling = None,
    stored_shape: StoredShape = False,
    ratio: Ratio = None,
    compressor: Compressor = None,
    backend: Backend = "pyav",
    timeout: Timeout = 60.0,
    allow_private: AllowPrivate = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
    fp8: Fp8 = False,
    verify: Verify = False,
) -> None:
    """Read a video once and save its memory to a file. It can then be queried any number of times."""
    from videoxl.session.sources import as_sources, is_memory, is_picture
    from videoxl.utils.timing import StageTimer, peak_memory

    (source,) = as_sources(local_file(video, allow_private))
    if is_memory(source):
        raise PromptError(f"{video} is a memory already; ask it with `videoxl ask`")
    if is_picture(source):
        raise PromptError(f"{video} is a picture; ask it with `videoxl ask`")
    if output.exists() and not force:
        raise PromptError(f"{output} exists; give --force to replace it")
    if not output.parent.is_dir() or output.is_dir():
        raise PromptError(
            f"cannot write {output}: {'it is a folder' if output.is_dir() else 'its folder does not exist'}"
        )
    choice: dict[str, Any] = {
        "frames": frames, "fps": fps, "max_frames": max_frames, "start": start, "end": end, "sampling": sampling,
        "stored_shape": stored_shape or None,
    }  # fmt: skip
    _check_choice(choice)
    session = load(model, device, dtype, fp8, verify)
    timer = StageTimer(session.model.device)
    with FrameProgress() as advance:
        memory = session.read(
            source, **choice, ratio=ratio, compressor=compressor, backend=backend, timeout=timeout, progress=advance,
            timer=timer,
        )  # fmt: skip
    say_notes([*memory.notes, *session.notes(memory)])
    with timer.stage("save"):
        memory.save(output, overwrite=force)
    print(f"wrote {output} ({output.stat().st_size / (1 << 20):.1f} MiB)")
    facts = {
        "frames": memory.num_frames,
        "visual_tokens": memory.num_visual_tokens,
        "cached_positions": memory.summary_length,
        "ratios": memory.ratios,
        "seconds": timer.seconds,
        "peak_memory_bytes": peak_memory(session.model.device),
    }
    print(numbers_line(facts))


def load(model: Path | None, device: str, dtype: str, fp8: bool, verify: bool = False) -> VideoXL:
    """Load the model, and print the notes for its users once."""
    import transformers

    from videoxl.session import VideoXL

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    with notes.status(f"loading {model.name if model is not None else 'the bundled model'}"):
        session = VideoXL.from_pretrained(model, device, dtype, load_fp8=fp8, verify=verify)
    say_notes(session.notes())
    return session


def _check_choice(choice: dict[str, Any]) -> None:
    """Reject an invalid frame choice before a large model is loaded. Raises `VideoError`."""
    from videoxl.session.sources import frame_choice

    frame_choice(**choice)
