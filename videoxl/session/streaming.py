"""Streaming an answer: the seconds to its first token, and its text while it is generated."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from transformers import StoppingCriteria, TextIteratorStreamer
from transformers.generation.streamers import BaseStreamer

from videoxl.session.answer import Answer
from videoxl.utils.timing import StageTimer


class FirstToken(BaseStreamer):
    """Times the stages `first token` and `answer` separately; passes everything on to another streamer."""

    def __init__(self, timer: StageTimer, then: BaseStreamer | None = None):
        self._timer, self._then, self._puts = timer, then, 0

    def __enter__(self) -> FirstToken:
        self._open("first token")
        return self

    def __exit__(self, *error) -> None:
        self._stage.__exit__(*error)

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
        if self._then is not None:
            self._then.end()


class TextStream:
    """The text of an answer while it is generated; iterate over it once.

    Attributes:
        answer: the whole `Answer` after the last text; None before.
    """

    def __init__(self, pieces: TextIteratorStreamer, work: Callable[[], Answer], stop: threading.Event):
        self.answer: Answer | None = None
        self._pieces = pieces
        self._stop = stop
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(work,), daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[str]:
        try:
            streamed = False
            for piece in filter(None, self._pieces):
                streamed = True
                yield piece
            self._thread.join()
            if self._error is not None:
                raise self._error
            if not streamed and self.answer is not None and self.answer.text:  # transformers cannot stream beam search
                yield self.answer.text
        finally:
            self.close()

    def close(self) -> None:
        """Stop generation; the model is free when this returns."""
        self._stop.set()
        self._thread.join()

    def _run(self, work: Callable[[], Answer]) -> None:
        try:
            self.answer = work()
        except BaseException as error:
            self._error = error
        finally:
            self._pieces.end()


class _Stop(StoppingCriteria):
    """Stops an answer once its stream is closed."""

    def __init__(self, stop: threading.Event):
        self._stop = stop

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs) -> torch.Tensor:
        return torch.full((len(input_ids),), self._stop.is_set(), dtype=torch.bool, device=input_ids.device)


def stream_text(tokenizer, respond: Callable[[BaseStreamer, StoppingCriteria], Answer]) -> TextStream:
    """Run `respond` in a thread and yield its text as it is generated."""
    pieces = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    stop = threading.Event()
    return TextStream(pieces, lambda: respond(pieces, _Stop(stop)), stop)


@contextmanager
def seeded(seed: int | None, device: torch.device) -> Iterator[None]:
    """Seed the random generators for sampling; restores the caller's generator state afterwards."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
