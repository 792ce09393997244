"""`VideoXL`: load a model once, read videos, ask questions about them. Cuts the answer out of `generate`'s output.

model = VideoXL.from_pretrained("path/to/VideoXL_weight_8")
film = model.read("film.mp4", frames=2048)
print(model.ask(film, "What is advertised?"))
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria
from transformers.generation.streamers import BaseStreamer

from videoxl.chat import SYSTEM_MESSAGE, PromptText, join_prompt_ids, plain_ids, question_prompt, text_ids
from videoxl.compression.base import Compressor
from videoxl.constants import IMAGE_TOKEN_INDEX
from videoxl.errors import CheckpointError, ConfigError, DataError, PromptError, VideoError
from videoxl.media.choice import FrameChoice
from videoxl.media.pixels import VideoXLImageProcessor
from videoxl.media.stream import FrameStream, open_video
from videoxl.media.views import process_images
from videoxl.model.loading import load_pretrained_model
from videoxl.model.memory import VideoMemory
from videoxl.model.modality import visual_length
from videoxl.model.modeling import LlavaQwenForCausalLM
from videoxl.model.visual import Progress
from videoxl.session.answer import Answer, FrameTime
from videoxl.session.assemble import assemble_answer
from videoxl.session.describe import notes_about
from videoxl.session.devices import pick_device
from videoxl.session.ratio import pick_ratio
from videoxl.session.scoring import Inputs, read_context_of, score_continuation
from videoxl.session.sources import (
    CHOICE,
    DEFAULT_FRAMES,
    INTERVAL,
    READING,
    all_pixels,
    announce,
    as_sources,
    check_choice,
    check_generation,
    check_options,
    is_memory,
    is_picture,
    is_video,
    the_choice,
)
from videoxl.session.streaming import FirstToken, TextStream, seeded, stream_text
from videoxl.session.subtitles import find_subtitles, with_subtitles
from videoxl.utils.resources import bundled_model
from videoxl.utils.timing import StageTimer


class VideoXL:
    """A model with its tokenizer and preprocessing. It keeps no state between questions.

    Attributes:
        model: the `LlavaQwenForCausalLM`, for work on tensors. tokenizer, image_processor: the checkpoint's.
        name: the checkpoint's path or hub id, for records.
    """

    def __init__(self, model: LlavaQwenForCausalLM, tokenizer, image_processor: VideoXLImageProcessor, name: str = ""):
        self.model = model
        self.tokenizer = tokenizer
        self.image_processor = image_processor
        self.name = name or str(model.config.name_or_path or "")

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path | None = None,
        device: str | torch.device | dict = "auto",
        dtype: str | torch.dtype = "auto",
        **loading: Any,
    ) -> VideoXL:
        """Load a checkpoint.

        Args:
            path: a folder in the published layout, or a Hugging Face hub id; None: the model bundled with the package.
            device: `cpu`, `cuda:0`, ...; `auto` is the GPU with the most free memory, or the CPU; `balanced` spreads
                the layers over all GPUs (see `pick_device`).
            dtype: `auto` is bfloat16 on a GPU (float16 if it lacks bfloat16) and float32 on the CPU.
            **loading: see `load_pretrained_model` (`load_4bit`, `load_fp8`, `attn_implementation`, ...).

        Raises:
            CheckpointError: the folder does not exist or is not a checkpoint. ConfigError: an unknown device, dtype or
                method.
        """
        if path is not None and not isinstance(path, (str, Path)):
            raise CheckpointError(f"{path!r} is no checkpoint; give a folder or a hub id")
        names = {"device_map": "device", "torch_dtype": "dtype"}
        for name in names.keys() & loading.keys():
            raise ConfigError(f"{name} is called {names[name]} here")
        folder = bundled_model() if path is None else path
        tokenizer, model, processor, _ = load_pretrained_model(
            folder, device_map=pick_device(device), torch_dtype=dtype, **loading
        )
        if processor is None:
            raise ConfigError(f"{folder} has no vision tower, so it cannot be asked about videos")
        return cls(model, tokenizer, processor, str(folder))

    # -- reading ---------------------------------------------------------------------------------------------------

    def read(  # noqa: PLR0913  # each option has a default; `choice` gives those of frames as one
        self,
        video: str | Path | FrameStream,
        *,
        frames: int | None = None,
        fps: float | None = None,
        max_frames: int | None = None,
        start: float | None = None,
        end: float | None = None,
        sampling: str | None = None,
        stored_shape: bool | None = None,
        choice: FrameChoice | None = None,
        ratio: int | None = None,
        compressor: str | Compressor | None = None,
        backend: str = "pyav",
        timeout: float | None = 60.0,
        system: str = SYSTEM_MESSAGE,
        prompt: PromptText | None = None,
        progress: Progress | None = None,
        timer: StageTimer | None = None,
    ) -> VideoMemory:
        """Read a video once, for any number of questions.

        Args:
            video: a file, or a stream from `open_video`.
            frames: how many, evenly spaced over the interval (default 128). fps: how many per second instead, at most
                `max_frames`. start, end: the interval in seconds. sampling: `uniform`, or `keyframes` (the nearest
                ones, decoded much faster). stored_shape: keep pixels that are not square as they are. choice: all of
                these as one object instead.
            ratio: visual tokens per cached position; None: the checkpoint's ratio if it has only one, else 8.
            compressor: `beacon` (None), `drop`, `mean`, `none`, or a registered one.
            backend: `pyav`, `nvdec`, `auto`, ...; see `open_video`.
            timeout: stop decoding after this many seconds without a frame; None: never.
            system: the system message. prompt: text before and after the video, instead of the template's.
            progress: called with the number of frames just read; if it has a method `start`, that is called first
                with the total number of frames.
            timer: collects the seconds of decoding, encoding and summarising.

        Raises:
            VideoError: not a video, or no frame to choose. PlanError: a ratio that has no window plan.
            MemoryLimitError: frames do not fit. ConfigError: unknown compressor. PromptError: `choice` and its fields.
        """
        given = dict(zip(INTERVAL, (frames, fps, max_frames, start, end, sampling, stored_shape)))
        chosen = the_choice(choice, given)
        if not isinstance(video, FrameStream):
            found = as_sources(video)
            if len(found) != 1 or not is_video(found[0]):
                raise VideoError(f"{video} is not one video to read; pass pictures and memories to ask directly")
            video = found[0]
        elif chosen is not None:
            raise VideoError(f"the frames of {video.info.path} were chosen when it was opened; leave the choice out")
        text = question_prompt("", system=system) if prompt is None else prompt
        timer = timer or StageTimer(self.model.device)
        memory = VideoMemory.start(
            self.model,
            text_ids(self.tokenizer, text.prefix),
            pick_ratio(self.model.config, ratio, compressor),
            compressor,
        )
        with timer.stage("decode"):
            if isinstance(video, FrameStream):
                stream = video
            else:
                stream = self.open(video, chosen or FrameChoice(DEFAULT_FRAMES), backend, timeout)
        with stream:
            announce(progress, stream)
            memory.extend(stream, progress, timer)
        memory.notes = list(stream.notes)
        return memory

    def open(
        self, video: str | Path, choice: FrameChoice, backend: str = "pyav", timeout: float | None = 60.0
    ) -> FrameStream:
        """The chosen frames of a video, for `read`. Raises `VideoError`."""
        device = self.model.model.input_device
        return open_video(str(video), self.image_processor, choice, backend=backend, timeout=timeout, device=device)

    def load_memory(self, path: str | Path) -> VideoMemory:
        """Load a memory that this model wrote to a file. Raises `MemoryFileError`."""
        return VideoMemory.load(path, self.model)

    # -- asking ----------------------------------------------------------------------------------------------------

    def ask(self, source: Any, question: str | PromptText, **options: Any) -> Answer:
        """Answer one question.

        Args:
            source: the path of a video, of a picture or of a memory's file; a `VideoMemory`; a picture (PIL or uint8
                [H, W, 3]); a list of these (a memory must come first); None: only text.
            question: a text, or a `PromptText` to use another template.
            **options: options of `read` for videos (`frames`, `fps`, `start`, `end`, `ratio`, ...), and

                - `max_new_tokens` (default 1024);
                - `temperature` (default 0: greedy decoding), `top_p`, `seed` for sampling;
                - `subtitles`: a file of subtitles, `own` (the video's text stream) or `SubtitleLine`s; the lines shown
                  while the frames are go before the question;
                - `streamer`, and every other argument of transformers' `generate`.

        Raises:
            PromptError: an empty question, an unsupported source, or an unknown option; and the errors of `read`.
        """
        timer = StageTimer(self.model.device)
        inputs, generation = self._prepare(source, question, options, timer)
        return self._respond(inputs, timer, **generation)

    def stream(self, source: Any, question: str | PromptText, **options: Any) -> TextStream:
        """Like `ask`, but yields the text while it is generated.

        Returns:
            An iterator of texts; after the last one, its `answer` is what `ask` returns. Closing it stops generation.
        """
        if options.get("streamer") is not None:
            raise PromptError("stream yields the text itself; leave streamer out, or use ask")
        timer = StageTimer(self.model.device)
        inputs, generation = self._prepare(source, question, options, timer)
        stops = generation.pop("stopping_criteria", None) or []

        def respond(streamer: BaseStreamer, stop: StoppingCriteria) -> Answer:
            return self._respond(
                inputs, timer, **generation | {"streamer": streamer, "stopping_criteria": [*stops, stop]}
            )

        return stream_text(self.tokenizer, respond)

    def score(self, source: Any, prompt: PromptText, continuation: str, **options: Any) -> tuple[float, bool]:
        """Log-likelihood of a continuation after a prompt.

        Returns:
            (sum of its tokens' log probabilities in nats, whether greedy decoding gives these tokens).

        Raises:
            DataError: the continuation has no token; and the errors of `ask`.
        """
        ids = plain_ids(self.tokenizer, continuation)
        if not ids:
            raise DataError("an empty continuation has no likelihood; check the task's doc_to_target or doc_to_choice")
        inputs, _ = self._prepare(source, prompt, options, StageTimer(self.model.device))
        with torch.inference_mode():
            cache = read_context_of(self.model, inputs)
            return score_continuation(self.model, cache, [*inputs.texts[-1], *ids], len(ids))

    def respond_to_ids(
        self, ids: Sequence[int], images: Sequence[Tensor] = (), modalities: Sequence[str] = (), **generation: Any
    ) -> str:
        """Answer a prompt given as token ids, with one placeholder for each of `images` (pixel values [F, 3, S, S])."""
        prompt = torch.tensor([list(ids)], device=self.model.model.input_device)
        extra: dict[str, Any] = {"images": list(images), "modalities": list(modalities)} if len(images) else {}
        output = self._generate(prompt, **extra, **{"do_sample": False, **generation})
        return self._cut(output, prompt, self._count_tokens(images, modalities))[0]

    # -- implementation --------------------------------------------------------------------------------------------

    def _prepare(
        self, source: Any, question: str | PromptText, options: dict[str, Any], timer: StageTimer
    ) -> tuple[Inputs, dict[str, Any]]:
        """The prompt with its visual input, and the remaining options: arguments of `generate`."""
        sources, asked = as_sources(source), question
        options = dict(options)
        reading = {name: options.pop(name) for name in READING if name in options}
        own_prefix = isinstance(question, str) and "system" not in options
        system = options.pop("system", SYSTEM_MESSAGE)
        subtitles = options.pop("subtitles", None)
        check_options(options, READING)
        check_generation(options)
        if not isinstance(question, (str, PromptText)):
            raise PromptError(f"a question is a text or a PromptText; got a {type(question).__name__}")
        if isinstance(question, str):
            if not question.strip():
                raise PromptError("the question is empty")
            question = question_prompt(question, len(sources), system)
        elif question.num_visuals != len(sources):
            raise PromptError(
                f"the prompt has places for {question.num_visuals} visual inputs; {len(sources)} were given"
            )
        check_choice(
            sources, *({name: reading.get(name) for name in names} for names in (CHOICE, ("ratio", "compressor")))
        )
        lines = None if subtitles is None else find_subtitles(subtitles, sources, asked)
        inputs = self._inputs(sources, question, reading, timer)
        if lines is not None and isinstance(asked, str):
            text, note = with_subtitles(asked, lines, inputs.frames)
            inputs.texts[-1] = text_ids(self.tokenizer, question_prompt(text, len(sources), system).suffix)
            inputs.notes.append(note)
        if own_prefix and inputs.memory is not None:
            inputs.texts[0] = inputs.memory.prefix_ids  # the text that this memory has read, which may be another one
        return inputs, options

    def _inputs(self, sources: list, prompt: PromptText, reading: dict, timer: StageTimer) -> Inputs:
        memory: VideoMemory | None = None
        notes: list[str] = []
        frames: list[FrameTime] = []
        if sources and (is_memory(sources[0]) or (len(sources) == 1 and is_video(sources[0]))):
            first = sources[0]
            if is_memory(first):
                memory = first.snapshot() if isinstance(first, VideoMemory) else self.load_memory(first)
            else:
                memory = self.read(first, **reading, prompt=prompt, timer=timer)
            notes += memory.notes
            frames += map(FrameTime, memory.indices, memory.timestamps)
            sources = sources[1:]
        images: list[Tensor] = []
        modalities: list[str] = []
        for each in sources:
            if is_picture(each):
                images.append(process_images([each], self.image_processor, self.model.config)[0])
                modalities.append("image")
            else:
                with timer.stage("decode"):
                    pixels, read, said = self._pixels(each, reading)
                images.append(pixels)
                modalities.append("video")
                frames += read
                notes += said
        images = [image.unsqueeze(0) if image.dim() == 3 else image for image in images]
        tokens = self._count_tokens(images, modalities) + (0 if memory is None else memory.num_visual_tokens)
        method: dict[str, Any] = {}
        if images and memory is None:
            compressor = reading.get("compressor")
            method = {
                "ratio": pick_ratio(self.model.config, reading.get("ratio"), compressor),
                "compressor": compressor,
            }
        texts = [text_ids(self.tokenizer, text) for text in prompt.texts]
        return Inputs(texts, memory, images, modalities, tokens, tuple(frames), notes, method)

    def _pixels(self, video: Path, reading: dict[str, Any]) -> tuple[Tensor, list[FrameTime], list[str]]:
        """For a prompt with several visual inputs: the chosen frames as pixel values [F, 3, S, S] float32 on the CPU,
        the frames that could be read, and notes."""
        choice = the_choice(reading.get("choice"), {name: reading.get(name) for name in INTERVAL})
        more = {name: reading[name] for name in ("backend", "timeout") if name in reading}
        with self.open(video, choice or FrameChoice(DEFAULT_FRAMES), **more) as stream:
            return *all_pixels(stream, reading.get("progress")), stream.notes

    def _count_tokens(self, images: Sequence[Tensor], modalities: Sequence[str]) -> int:
        patches, config = self.model.model.tower.num_patches, self.model.config
        return sum(visual_length(len(image), patches, kind, config) for image, kind in zip(images, modalities))

    def _respond(
        self,
        inputs: Inputs,
        timer: StageTimer,
        max_new_tokens: int = 1024,
        temperature: float = 0.0,
        seed: int | None = None,
        streamer: BaseStreamer | None = None,
        **generation: Any,
    ) -> Answer:
        ids = torch.tensor([join_prompt_ids(*inputs.texts)], device=self.model.model.input_device)
        extra: dict[str, Any] = {} if inputs.memory is None else {"memory": inputs.memory}
        if inputs.images:
            extra |= {"images": inputs.images, "modalities": inputs.modalities, **inputs.method}
        if generation.get("stop_strings") is not None:
            extra["tokenizer"] = self.tokenizer
        sampling = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
        with seeded(seed, self.model.device), FirstToken(timer, streamer) as first:
            beams = generation.get("num_beams", 1) > 1  # transformers cannot stream beam search
            output = self._generate(
                ids,
                **extra,
                max_new_tokens=max_new_tokens,
                streamer=None if beams else first,
                **{**sampling, **generation},
            )
        text, new_tokens = self._cut(output, ids, inputs.visual_tokens)
        lengths = [self._count_tokens([image], [kind]) for image, kind in zip(inputs.images, inputs.modalities)]
        notes = self.notes(inputs.memory)
        return assemble_answer(text, new_tokens, inputs, lengths, timer, self.model.device, notes)

    def _generate(self, prompt: Tensor, **options: Any) -> Tensor:
        output = self.model.generate(prompt, **options)
        return output if isinstance(output, Tensor) else output.sequences

    def _cut(self, output: Tensor, prompt: Tensor, visual_tokens: int) -> tuple[str, int]:
        """Text of the answer, which follows the expanded prompt, and its number of tokens."""
        placeholders = int((prompt[0] == IMAGE_TOKEN_INDEX).sum())
        new = output[0, prompt.shape[1] - placeholders + visual_tokens :]
        return self.tokenizer.decode(new, skip_special_tokens=True).strip(), len(new)

    def notes(self, memory: VideoMemory | None = None) -> list[str]:
        """Notes for the user of this model (and of a memory): its purpose, and positions beyond its training."""
        return notes_about(self.model.config, memory)
