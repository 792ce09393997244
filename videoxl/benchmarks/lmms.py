"""The model for lmms-eval (https://github.com/EvolvingLMMs-Lab/lmms-eval, "simple" models).

Questions about one video share its memory; a video that cannot be read gets an empty answer and a line in the log.
Besides token counts, every logged sample holds the ratio, the number of frames and their times.
"""

from __future__ import annotations

import ast
import atexit
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch.distributed as dist
from accelerate import Accelerator
from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from loguru import logger
from PIL import Image
from tqdm import tqdm
from transformers import GenerationConfig

from videoxl.benchmarks.asking import Reading, load_asker
from videoxl.benchmarks.lmms_arguments import LmmsArguments
from videoxl.chat import PromptText, template_prompt
from videoxl.errors import ConfigError, DataError, PictureError, VideoError, VideoXLError
from videoxl.media.pictures import is_picture_file
from videoxl.model.configuration import VideoXLConfig
from videoxl.utils.processes import Processes

UNREADABLE = (VideoError, PictureError, FileNotFoundError)
_told: set[str] = set()  # options that were named
_IGNORED = (
    "until",
    "image_aspect_ratio",
    "max_gen_toks",
)  # stop strings are cut off; the others are not for `generate`


@dataclass
class Evidence(TokenCounts):
    """Facts about an answer, logged with its token counts: the only entry of a sample that a model can extend."""

    facts: dict = field(default_factory=dict)

    def to_dict(self) -> dict:
        return super().to_dict() | self.facts


class VideoXL(lmms):
    """Video-XL under lmms-eval.

    Args:
        **model_args: see `LmmsArguments`.
    """

    is_simple = True

    def __init__(self, **model_args: Any):
        super().__init__()
        self._status = _ExitStatus()  # before anything can fail: lmms-eval would exit with 0
        given = LmmsArguments.parse(model_args)
        self._status.strict = given.strict
        self.conv_template = given.conv_template
        own_config = given.customized_config
        accelerator = Accelerator()
        processes = Processes()
        ratio = parse_ratio(given.beacon_ratio)
        self._asker = load_asker(
            given.pretrained,
            Reading(given.choice, ratio, given.video_decode_backend, given.decode_timeout, given.compressor),
            given.memory_cache_gb,
            processes.device(given.device_map or given.device or "auto"),
            given.dtype,
            attn_implementation=given.attn_implementation,
            customized_config=VideoXLConfig.from_pretrained(own_config) if own_config else None,
            overwrite_config=given.overwrite_config,
        )
        self.accelerator = accelerator  # lmms-eval counts requests through it
        self.device = self._asker.session.model.device
        self._rank, self._world_size = processes.rank, processes.world_size
        self._has_videos: dict[str, bool] = {}  # by task
        self._status.share()
        self._status.is_built = True

    # -- requests --------------------------------------------------------------------------------------------------

    def generate_until(self, requests: Sequence[Instance]) -> list[GenerationResult]:
        def respond(request: Instance) -> GenerationResult:
            context, generation, doc_to_visual, doc_id, task, split = request.args
            document = self._document(task, split, doc_id)
            return self._generate(context, generation, self._visuals(lambda: doc_to_visual(document)))

        return self._in_video_order(requests, respond, "")

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> list[GenerationResult]:
        """The answers of all rounds as a list; after each round the task gives the next question."""

        def respond(request: Instance) -> GenerationResult:
            context, generation, doc_to_visual, doc_to_text, doc_id, task, split = request.args
            document = self._document(task, split, doc_id)
            seen, answers, info = self._visuals(lambda: doc_to_visual(document)), [], None
            while True:
                made = self._generate(context, generation, seen)
                answers.append(made.text)
                visuals, context, is_over, answers, info = doc_to_text(
                    document, previous_output=answers, round_idx=len(answers), previous_round_info=info
                )
                answers = list(answers)
                if is_over:
                    return GenerationResult(_Rounds(answers), made.token_counts)
                seen = check_visuals(visuals)

        return self._in_video_order(requests, respond, _Rounds([""]))

    def loglikelihood(self, requests: Sequence[Instance]) -> list[GenerationResult]:
        """(*negative* log-likelihood, whether greedy decoding gives it) of each continuation.

        The sign is lmms-eval's: it takes the lowest number as the best choice, since its models return losses. The pair
        is wrapped, since lmms-eval 0.7 converts a bare pair to a string and then cannot score it.
        """

        def respond(request: Instance) -> GenerationResult:
            if len(request.args) == 2:  # the answer without a question, for scores that subtract its likelihood
                return self._score(*request.args, [])
            context, target, doc_to_visual, doc_id, task, split = request.args
            document = self._document(task, split, doc_id)
            continuation = target if isinstance(target, str) else target(document)
            return self._score(context, continuation, self._visuals(lambda: doc_to_visual(document)))

        return self._in_video_order(requests, respond, _Pair((float("inf"), False)))

    # -- one request -----------------------------------------------------------------------------------------------

    def _generate(self, context: str, generation: dict, seen: list) -> GenerationResult:
        prompt = template_prompt(self.conv_template, context, len(seen))
        source, options, facts = self._source(prompt, seen)
        answer = self._asker.session.ask(source, prompt, **options, **generation_options(generation))
        return GenerationResult(
            _cut(answer.text, generation.get("until") or generation.get("stop_sequences")), Evidence(facts=facts)
        )

    def _score(self, context: str, continuation: str, seen: list) -> GenerationResult:
        prompt = template_prompt(self.conv_template, context, len(seen))
        source, options, facts = self._source(prompt, seen)
        likelihood, is_greedy = self._asker.session.score(source, prompt, continuation, **options)
        return GenerationResult(_Pair((-likelihood, is_greedy)), Evidence(facts=facts))

    def _source(self, prompt: PromptText, seen: list) -> tuple[Any, dict[str, Any], dict[str, Any]]:
        """Sources, reading options and facts for the log; a single video becomes a memory."""
        asker = self._asker
        if len(seen) == 1 and isinstance(seen[0], str) and not is_picture_file(Path(seen[0])):
            memory = asker.memory(seen[0], prompt)
            return memory, {}, asker.facts(memory)
        reading = asker.reading
        facts = {"beacon_ratio": reading.ratio, **reading.named_method, "visual_inputs": len(seen)} if seen else {}
        return seen, reading.options_for(seen), facts

    def _visuals(self, visuals: Callable[[], Any]) -> list:
        """Paths of videos and pictures of one document."""
        try:
            return check_visuals(visuals())
        except SystemExit as error:  # some tasks exit the process if a file is missing
            raise VideoError(str(error)) from error
        except UNREADABLE:
            raise
        except DataError:  # the task gives what no model could read
            raise
        except Exception as error:  # others assert, or look up what their cache lacks
            raise VideoError(f"the task cannot give its visual input: {type(error).__name__}: {error}") from error

    def _document(self, task: str, split: str, doc_id: int) -> dict:
        return self.task_dict[task][split][doc_id]

    def _in_video_order(self, requests: Sequence[Instance], respond: Callable, failed: Any) -> list[GenerationResult]:
        """Answers in the order of the requests; requests about one video are processed together."""
        order = sorted(range(len(requests)), key=lambda place: self._video_of(requests[place]))
        responses = [GenerationResult(failed)] * len(requests)
        for place in tqdm(order, desc="videoxl", disable=self._rank != 0):
            try:
                responses[place] = respond(requests[place])
            except UNREADABLE as error:
                logger.error(f"videoxl: {error}; an empty answer is recorded")
                self._status.add_unreadable(str(error))
            except Exception:
                self._status.is_broken = True
                raise
        return responses

    def _video_of(self, request: Instance) -> str:
        """The path of a request's video; empty for other requests, which keep their order."""
        if len(request.args) == 2:
            return ""
        doc_id, task, split = request.args[-3:]
        if self._has_videos.get(task, True):  # do not open a task's pictures again just to check
            try:
                seen = self._visuals(lambda: request.args[2](self._document(task, split, doc_id)))
            except (VideoXLError, OSError):
                return ""
            if seen and isinstance(seen[0], str):
                return seen[0]
            self._has_videos[task] = False
        return ""


class _Pair(tuple):
    """(negative log-likelihood, is greedy) where lmms-eval expects a text."""

    def strip(self) -> str:
        """Empty, so that nothing is cached: lmms-eval's answer cache would return text, which cannot be scored."""
        return ""


class _Rounds(list):
    """The answers of several rounds where lmms-eval expects a text."""

    strip = _Pair.strip


class _ExitStatus:
    """Sets the exit status of the process: lmms-eval itself always exits with 0.

    Attributes:
        is_built: whether the model was built. is_broken: whether a request raised an error.
        unreadable: messages about inputs that this process could not read.
    """

    def __init__(self) -> None:
        self.strict = False
        self.is_built = self.is_broken = False
        self.unreadable: set[str] = set()
        self._store = None
        atexit.register(self._end)  # registered early, so that it runs after the other handlers

    def share(self) -> None:
        """Count over all processes through the store, which needs no collective call: a process whose answers all come
        from lmms-eval's cache runs no request."""
        if dist.is_initialized():
            self._store = dist.distributed_c10d._get_default_store()

    def add_unreadable(self, what: str) -> None:
        if what not in self.unreadable:
            self.unreadable.add(what)
            self._add(1)

    def _add(self, number: int) -> int:
        """The count over all processes."""
        return len(self.unreadable) if self._store is None else self._store.add("videoxl/unreadable", number)

    def _end(self) -> None:
        if not self.is_built or self.is_broken:
            self._exit(2)  # in every process: the launcher then stops those that would wait for this one
        if not self.strict or int(os.environ.get("RANK", 0)):
            return  # if another process failed, the launcher would stop the one that still writes results
        number = self._add(0)
        if number:
            print(f"error: strict: {number} visual inputs could not be read, see the log above", file=sys.stderr)
            self._exit(1)

    def _exit(self, status: int) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def check_visuals(visuals: Any) -> list[str | Image.Image]:
    """Visual inputs of a task as a list. Raises `DataError` for anything but pictures and paths."""
    seen = [] if visuals is None else list(visuals) if isinstance(visuals, (list, tuple)) else [visuals]
    for each in seen:
        if not isinstance(each, (str, os.PathLike, Image.Image)):
            raise DataError(f"a visual input is a {type(each).__name__}; tasks must give pictures or paths of videos")
    return [os.fspath(each) if isinstance(each, os.PathLike) else each for each in seen]


def parse_ratio(value: int | str) -> int:
    """Parse lmms-eval's value of `beacon_ratio=8` or `beacon_ratio=[8]`. Raises `ConfigError`."""
    try:
        parsed = ast.literal_eval(str(value))
    except (ValueError, SyntaxError) as error:
        raise ConfigError(f"beacon_ratio={value}: give one number, such as 8") from error
    ratios = parsed if isinstance(parsed, (list, tuple)) else [parsed]
    if len(ratios) != 1 or not isinstance(ratios[0], int):
        raise ConfigError(
            f"beacon_ratio={value}: give one ratio; random draws from several would change the scores in every run"
        )
    return ratios[0]


def generation_options(given: dict) -> dict:
    """Arguments of `generate`, greedy unless the task asks for sampling; others are named in the log, once."""
    known = GenerationConfig().to_dict().keys()
    unknown = given.keys() - known - {*_IGNORED, *_told}
    if unknown:
        _told.update(unknown)
        logger.warning(f"videoxl: generation options {sorted(unknown)} are not known and not used")
    options = {key: value for key, value in given.items() if value is not None and key in known}
    options.setdefault("max_new_tokens", given.get("max_gen_toks") or 1024)
    temperature = float(options.get("temperature", 0))
    options.setdefault("do_sample", temperature > 0)
    if not options["do_sample"]:
        for name in ("temperature", "top_p", "top_k"):
            options.pop(name, None)
    return options


def _cut(answer: str, until: str | Sequence[str] | None) -> str:
    """The answer up to the first stop string."""
    for stop in [until] if isinstance(until, str) else until or ():
        answer = answer.split(stop)[0] if stop else answer
    return answer
