"""The parts of a file on their way: decoders take them in order, frames come out in order, memory stays bounded.

Parts are handed out only a few ahead of the one that is wanted next. A decoder that cannot finish a part gives the rest
of it back; `steady` decoders, which read whatever can be read, take it first.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from videoxl.errors import VideoError, VideoTimeoutError
from videoxl.media.parts import MOST_FRAMES, Part

FRAMES_AHEAD = 80
"""Frames that may wait to be read, beyond a part for each decoder: two chunks, 27 MB at 336 pixels."""
FRAMES_AHEAD_ON_GPU = 512
"""The same where the GPU decodes: it is done with many parts while a process has one. 173 MB, most of it there."""
_PATIENCE = 0.1  # seconds between looks at whether somebody closed the queue


class PartQueue:
    """Any number of threads may `take` parts and `put` frames; one reads them with `next`.

    Args:
        path: the file, for messages.
        for_steady: how many of the first parts are for steady decoders.

    Attributes:
        steady, quick: decoders of both kinds that take parts; the more, the further they may be ahead.
        ahead: frames that may wait.
        steady_take_all: whether steady decoders take parts that nobody has begun, too.
        rescued: frames that steady decoders gave of parts that were given back.
    """

    def __init__(self, path: str, parts: Sequence[Part | None], for_steady: int = 0):
        self._path = path
        self._parts = list(parts)
        self._lock = threading.Condition()
        self._begun = for_steady
        self._given_back: dict[int, Part | None] = {at: parts[at] for at in range(for_steady)}
        self._were_given_back: set[int] = set()
        self._frames: dict[int, deque[tuple[int, Any]]] = {}
        self._done: set[int] = set()
        self._errors: dict[int, BaseException] = {}
        self._last_error: BaseException | None = None
        self._first: tuple[int, Any] | None = None
        self._wanted = 0
        self._waiting = 0
        self.steady = self.quick = 0
        self.ahead = FRAMES_AHEAD
        self.steady_take_all = True
        self.closed = False
        self.rescued = 0

    def __len__(self) -> int:
        return len(self._parts)

    # -- for decoders ----------------------------------------------------------------------------------------------

    def take(self, steady: bool = True) -> tuple[int, Part | None] | None:
        """The next part to decode and its number, once it is time for it; None when there will be no more."""
        with self._lock:
            while not self.closed and len(self._done) + len(self._errors) < len(self._parts):
                if steady and self._given_back:
                    number = min(self._given_back)
                    return number, self._given_back.pop(number)
                may = (self.steady_take_all or not steady) and self._begun < len(self._parts)
                if may and not self._is_far_ahead():
                    self._begun += 1
                    return self._begun - 1, self._parts[self._begun - 1]
                self._lock.wait()
            return None

    def put(self, number: int, frame: tuple[int, Any]) -> bool:
        """Hand over a frame of part `number`, with its number in the file; waits while too many are there.

        Returns:
            False where nobody wants more frames.
        """
        with self._lock:
            if self.closed:
                return False
            if number == 0 and self._first is None:
                self._first = frame
            self.rescued += number in self._were_given_back
            self._frames.setdefault(number, deque()).append(frame)
            self._waiting += 1
            self._lock.notify_all()
            while self._is_full(number) and not self.closed:
                self._lock.wait()
            return not self.closed

    def finish(self, number: int) -> None:
        """Say that part `number` has no more frames."""
        with self._lock:
            self._done.add(number)
            self._lock.notify_all()

    def give_back(self, number: int, rest: Part) -> None:
        """Leave the `rest` of part `number` to a steady decoder."""
        with self._lock:
            self._given_back[number] = rest
            self._were_given_back.add(number)
            self._lock.notify_all()

    def fail(self, number: int, error: BaseException) -> None:
        """Raise `error` in the reader, once it has come to part `number`."""
        with self._lock:
            self._errors[number] = self._last_error = error
            self._lock.notify_all()

    def leave(self, steady: bool) -> None:
        """Say that a decoder takes no more parts."""
        with self._lock:
            if steady:
                self.steady -= 1
            else:
                self.quick -= 1
            self._lock.notify_all()

    def let_steady_take_all(self) -> None:
        with self._lock:
            self.steady_take_all = True
            self._lock.notify_all()

    def wait_for_first(self) -> tuple[int, Any] | None:
        """The first frame of the first part, once it is there; None where it does not come."""
        with self._lock:
            while self._first is None and not (self.closed or 0 in self._done or 0 in self._errors):
                self._lock.wait()
            return self._first

    # -- for the reader --------------------------------------------------------------------------------------------

    def next(self, number: int, timeout: float) -> tuple[int, Any] | None:
        """The next frame of part `number`; None at its end. Raises what a decoder met, or `VideoTimeoutError`."""
        deadline = time.monotonic() + timeout
        with self._lock:
            if number != self._wanted:
                self._wanted = number
                self._lock.notify_all()
            while True:
                held = self._frames.get(number)
                if held:
                    self._waiting -= 1
                    self._lock.notify_all()
                    return held.popleft()
                if number in self._done:
                    self._frames.pop(number, None)
                    return None
                if number in self._errors:
                    raise self._errors[number]
                if self.closed:
                    raise VideoError(f"{self._path}: decoding was closed")
                if self._is_orphan(number):
                    raise self._last_error or VideoError(f"{self._path}: no decoder is left")
                if time.monotonic() > deadline:
                    raise VideoTimeoutError(f"{self._path}: no frame for {timeout:g} s")
                self._lock.wait(_PATIENCE)

    def close(self) -> None:
        """Let everybody who waits go on, and drop what was not read."""
        with self._lock:
            self.closed = True
            self._frames.clear()
            self._lock.notify_all()

    def _is_orphan(self, number: int) -> bool:
        """Whether nobody is left to decode a part."""
        if self.steady > 0:
            return False
        return number in self._given_back or (number >= self._begun and self.quick <= 0)

    def _is_far_ahead(self) -> bool:
        return self._begun >= self._wanted + self.steady + self.quick and self._waiting >= self.ahead

    def _is_full(self, number: int) -> bool:
        """Whether a part must wait; the one that is wanted does so for its own frames alone."""
        if number == self._wanted:
            return len(self._frames.get(number, ())) >= self.ahead
        if self._wanted in self._given_back:  # it waits for a decoder, which must not wait for it
            return False
        return self._waiting >= self.ahead + MOST_FRAMES * (self.steady + self.quick)
