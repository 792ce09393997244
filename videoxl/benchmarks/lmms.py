"""The model as lmms-eval asks it (https://github.com/EvolvingLMMs-Lab/lmms-eval, "simple" models).

Questions about one video share its memory; a video that cannot be read gets an empty answer and a line in the log.
Every logged sample holds, beside its token counts, the ratio, the number of frames and their times.
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

from videoxl.benchmarks.asking import Reading, load_asker
from videoxl.benchmarks.lmms_arguments import LmmsArguments
from videoxl.chat import PromptText, template_prompt
from videoxl.errors import ConfigError, DataError, PictureError, VideoError, VideoXLError
from videoxl.media.pictures import is_picture_file
from videoxl.model.configuration import VideoXLConfig
from videoxl.utils.processes import Processes

UNREADABLE = (VideoError, PictureError, FileNotFoundError)
_GENERATION = ("max_new_tokens", "temperature", "top_p", "num_beams", "do_sample")


@dataclass
class Evidence(TokenCounts):
    """What an answer rests on, where lmms-eval logs token counts: the one place of a sample that a model can add to."""

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
        self._status = _ExitStatus(bool(model_args.get("strict", False)))
        given = LmmsArguments.parse(model_args)
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
        """The answers of all rounds as a list; the task says after every round what comes next."""

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
        """(*negative* log-likelihood, whether it is what greedy decoding gives) of each continuation.

        The sign is lmms-eval's own: it takes the lowest number for the best choice, since its models return losses.
        Wrapped, since lmms-eval 0.7 makes a text of a pair of numbers that comes bare, and then cannot score it.
        """

        def respond(request: Instance) -> GenerationResult:
            if len(request.args) == 2:  # the answer alone, for scores that take its own likelihood off
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
        answer = self._asker.session.ask(source, prompt, **options, **_generation_options(generation))
        return GenerationResult(_cut(answer.text, generation.get("until")), Evidence(facts=facts))

    def _score(self, context: str, continuation: str, seen: list) -> GenerationResult:
        prompt = template_prompt(self.conv_template, context, len(seen))
        source, options, facts = self._source(prompt, seen)
        likelihood, is_greedy = self._asker.session.score(source, prompt, continuation, **options)
        return GenerationResult(_Pair((-likelihood, is_greedy)), Evidence(facts=facts))

    def _source(self, prompt: PromptText, seen: list) -> tuple[Any, dict[str, Any], dict[str, Any]]:
        """What is asked, options of reading it, and facts for the log; a single video is read once."""
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
        except SystemExit as error:  # some tasks end the process for a file that is not there
            raise VideoError(str(error)) from error

    def _document(self, task: str, split: str, doc_id: int) -> dict:
        return self.task_dict[task][split][doc_id]

    def _in_video_order(self, requests: Sequence[Instance], respond: Callable, failed: Any) -> list[GenerationResult]:
        """Answers in the order of the requests; those about one video are worked on together."""
        order = sorted(range(len(requests)), key=lambda place: self._video_of(requests[place]))
        responses = [GenerationResult(failed)] * len(requests)
        for place in tqdm(order, desc="videoxl", disable=self._rank != 0):
            try:
                responses[place] = respond(requests[place])
            except UNREADABLE as error:
                logger.error(f"videoxl: {error}; an empty answer stands for it")
                self._status.add_unreadable(str(error))
            except Exception:
                self._status.is_broken = True
                raise
        return responses

    def _video_of(self, request: Instance) -> str:
        """The path of a request's video; nothing for requests about something else, which keep their order."""
        if len(request.args) == 2:
            return ""
        doc_id, task, split = request.args[-3:]
        if self._has_videos.get(task, True):  # pictures are not opened twice to find that out
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
        """Nothing to keep: lmms-eval's cache of answers would give a text back, which cannot be scored."""
        return ""


class _Rounds(list):
    """The answers of several rounds where lmms-eval expects a text."""

    strip = _Pair.strip


class _ExitStatus:
    """Gives the process a status at its end: lmms-eval itself ends with 0 whatever happened.

    Attributes:
        is_built: whether the model could be made. is_broken: whether a request ended with an error.
        unreadable: what this process could not read.
    """

    def __init__(self, strict: bool):
        self.strict = strict
        self.is_built = self.is_broken = False
        self.unreadable: set[str] = set()
        self._store = None
        atexit.register(self._end)  # first of all: it runs last, after everybody's own work

    def share(self) -> None:
        """Count over all processes. Through the store, which waits for nobody: a process whose answers all come from
        lmms-eval's cache is never asked anything."""
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
            self._exit(2)  # on every process: a launcher then ends those that would wait for this one
        if not self.strict or int(os.environ.get("RANK", 0)):
            return  # a launcher that saw another process fail would end the one that still writes results
        number = self._add(0)
        if number:
            print(f"error: strict: {number} visual inputs could not be read, see the log above", file=sys.stderr)
            self._exit(1)

    def _exit(self, status: int) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def check_visuals(visuals: Any) -> list[str | Image.Image]:
    """Visual inputs of a task as a list. Raises `DataError` for what is neither a picture nor a video's path."""
    seen = [] if visuals is None else list(visuals) if isinstance(visuals, (list, tuple)) else [visuals]
    for each in seen:
        if not isinstance(each, (str, Image.Image)):
            raise DataError(f"a visual input is a {type(each).__name__}; tasks must give pictures or paths of videos")
    return seen


def parse_ratio(value: int | str) -> int:
    """One compression ratio from what lmms-eval makes of `beacon_ratio=8` or `beacon_ratio=[8]`."""
    try:
        parsed = ast.literal_eval(str(value))
    except (ValueError, SyntaxError) as error:
        raise ConfigError(f"beacon_ratio={value}: give one number, such as 8") from error
    ratios = parsed if isinstance(parsed, (list, tuple)) else [parsed]
    if len(ratios) != 1 or not isinstance(ratios[0], int):
        raise ConfigError(
            f"beacon_ratio={value}: give one ratio; drawing among several would make other scores every time"
        )
    return ratios[0]


def _generation_options(given: dict) -> dict:
    """Arguments of `generate`, greedy unless the task asks for sampling."""
    options = {key: given[key] for key in _GENERATION if given.get(key) is not None}
    options.setdefault("max_new_tokens", 1024)
    temperature = float(options.get("temperature", 0))
    options.setdefault("do_sample", temperature > 0)
    if not options["do_sample"]:
        options.pop("temperature", None)
        options.pop("top_p", None)
    return options


def _cut(answer: str, until: str | Sequence[str] | None) -> str:
    """What stands before the first of the texts that end an answer."""
    for stop in [until] if isinstance(until, str) else until or ():
        answer = answer.split(stop)[0] if stop else answer
    return answer
