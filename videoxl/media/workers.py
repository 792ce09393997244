"""Decoder processes that share one file: they take its parts in order, and frames come out in order.

Every part is decoded by itself, so the frames are the same for any number of processes. Parts are handed out only a few
ahead of the one that is wanted next, so memory stays bounded.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict

import numpy as np

from videoxl.errors import VideoError, VideoTimeoutError
from videoxl.media.choice import FrameChoice
from videoxl.media.container import check_file
from videoxl.media.decoders import DECODERS
from videoxl.media.decoders.base import Frames
from videoxl.media.parts import MOST_FRAMES
from videoxl.media.process import DecoderProcess
from videoxl.media.worker import read_info
from videoxl.utils.cores import available_cores
from videoxl.utils.numbers import is_number, is_whole_number
from videoxl.utils.registry import place_of

_WORTH_ALL = 1 << 26  # bytes of a file that is surely worth all processes
_WORTH_A_PROCESS = 40e6  # pixels to decode; less takes no longer than to start a process
FRAMES_AHEAD = 80
"""Frames that may wait to be read, beyond a part for each process: two chunks, 27 MB at 336 pixels."""
_PATIENCE = 0.1  # seconds between looks at whether somebody closed the stream


class DecoderWorkers:
    """Indexes a file and decodes chosen frames in processes of their own; see `videoxl.media.stream.open_video`.

    Attributes:
        info: the file's `VideoInfo`. indices: [n] int64, the chosen frames.
        workers: processes that decode.
    """

    def __init__(
        self, path: str, choice: FrameChoice, backend: str, side: int, scaler: bool, timeout: float, most: int | None
    ):
        if not is_number(timeout) or not 0 < timeout < math.inf:
            raise VideoError(f"timeout is {timeout!r}; it must be a number of seconds above 0, or None")
        self._path, self._timeout = path, timeout
        self._lock = threading.Condition()
        self._closed = False
        self._threads: list[threading.Thread] = []
        self._errors: dict[int, BaseException] = {}  # by part
        self._frames: dict[int, deque[tuple[int, np.ndarray]]] = {}  # by part
        self._done: set[int] = set()
        self._wanted_part = 0
        self._waiting = 0  # frames, of all parts
        self._taken = 0
        most = available_cores() if most is None else most
        if not is_whole_number(most) or most < 1:
            raise VideoError(f"workers is {most!r}; it must be a whole number of at least 1, or None")
        # The others start while the first one reads the index: two, or all for a file that is worth it.
        begin = min(most, most if _size(path) >= _WORTH_ALL else 2) if backend == "pyav" else 1
        self._processes = [DecoderProcess(path) for _ in range(begin)]
        try:
            first = self._processes[0]
            first.request(do="index", path=path, choice=asdict(choice), backend=backend, decoder=_importable(backend))
            header, payload = first.receive(timeout)
            self.info, self.indices = read_info(header, payload)
            self._parts: list[dict] = header["parts"]
            stretch = (1.0, 1.0) if choice.stored_shape else self.info.stretch()
            if self._parts:
                pixels = header["cost"] * self.info.width * self.info.height
                number = min(most, len(self._parts), 1 + int(pixels / _WORTH_A_PROCESS))
                self._start(number, side, scaler, stretch)
            else:
                self._one_for_all(backend, side, scaler, choice.stored_shape)
        except BaseException:
            self.close()
            raise
        self.workers = len(self._processes)

    def _start(self, number: int, side: int, scaler: bool, stretch: tuple[float, float]) -> None:
        for spare in self._processes[number:]:
            spare.kill()
        self._processes = self._processes[:number]
        self._processes += [DecoderProcess(self._path) for _ in range(number - len(self._processes))]
        turned = {"rotation": self.info.rotation, "mirrored": self.info.mirrored}
        for process in self._processes:
            process.request(do="open", path=self._path, **turned, side=side, scaler=scaler, stretch=list(stretch))
            self._in_thread(self._take_parts, process)

    def _one_for_all(self, backend: str, side: int, scaler: bool, stored_shape: bool) -> None:
        for spare in self._processes[1:]:
            spare.kill()
        self._processes = self._processes[:1]
        self._parts = [{}]
        self._processes[0].request(
            do="all", indices=self.indices.tolist(), backend=backend, side=side, scaler=scaler,
            stored_shape=stored_shape,
        )  # fmt: skip
        self._taken = 1
        self._in_thread(self._receive_part, self._processes[0], 0)

    def _in_thread(self, work: Callable[..., object], *arguments) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _take_parts(self, process: DecoderProcess) -> None:
        while True:
            with self._lock:
                while not self._closed and self._taken < len(self._parts) and self._is_far_ahead():
                    self._lock.wait()
                if self._closed or self._taken == len(self._parts):
                    break
                number = self._taken
                self._taken += 1
            process.request(do="part", number=number, part=self._parts[number])
            if not self._receive_part(process, number):
                break
        process.kill()

    def _is_far_ahead(self) -> bool:
        return self._taken >= self._wanted_part + len(self._processes) and self._waiting >= FRAMES_AHEAD

    def _is_full(self, number: int) -> bool:
        """Whether a part must wait; the one that is wanted does so for its own frames alone."""
        if number == self._wanted_part:
            return len(self._frames.get(number, ())) >= FRAMES_AHEAD
        return self._waiting >= FRAMES_AHEAD + MOST_FRAMES * len(self._processes)

    def _receive_part(self, process: DecoderProcess, number: int) -> bool:
        """Collect the frames of a part. An error is kept for whoever reads up to it; False then."""
        try:
            self._collect(process, number)
            return True
        except BaseException as error:
            with self._lock:
                self._errors[number] = error
                self._lock.notify_all()
            return False

    def _collect(self, process: DecoderProcess, number: int) -> None:
        while True:
            header, payload = process.receive(self._timeout)
            with self._lock:
                if header["kind"] == "end":
                    self._done.add(number)
                    self._lock.notify_all()
                    return
                side = header["side"]
                frame = np.frombuffer(payload, dtype=np.uint8).reshape(side, side, 3)
                self._frames.setdefault(number, deque()).append((header["number"], frame))
                self._waiting += 1
                self._lock.notify_all()
                while self._is_full(number) and not self._closed:
                    self._lock.wait()

    def frames(self) -> Frames:
        """Yield (frame number, uint8 [S, S, 3]) in order; ends the processes when done, closed or interrupted."""
        try:
            for number in range(len(self._parts)):
                with self._lock:
                    self._wanted_part = number
                    self._lock.notify_all()
                while (frame := self._next(number)) is not None:
                    yield frame
        finally:
            self.close()

    def _next(self, number: int) -> tuple[int, np.ndarray] | None:
        """The next frame of a part; None at its end."""
        deadline = time.monotonic() + 2 * self._timeout  # the process that decodes it has its own limit
        with self._lock:
            while True:
                held = self._frames.get(number)
                if held:
                    frame = held.popleft()
                    self._waiting -= 1
                    self._lock.notify_all()
                    return frame
                if number in self._done:
                    self._frames.pop(number, None)
                    return None
                if number in self._errors:
                    raise self._errors[number]
                if self._closed:
                    raise VideoError(f"{self._path}: decoding was closed")
                if time.monotonic() > deadline:
                    raise VideoTimeoutError(f"{self._path}: no frame for {2 * self._timeout:g} s")
                self._lock.wait(_PATIENCE)

    def close(self) -> None:
        """Kill the processes that still run."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._lock.notify_all()
        for process in self._processes:
            process.kill()
        for thread in self._threads:  # each meets the end of its process
            thread.join(_PATIENCE)

    def __del__(self):
        if hasattr(self, "_processes"):
            self.close()


def _size(path: str) -> int:
    check_file(path)
    return os.stat(path).st_size


def _importable(backend: str) -> str:
    """The path by which the child imports a decoder. Raises `VideoError` for one defined in the main script."""
    place = place_of(DECODERS.get(backend))
    if place.startswith("__main__:"):
        raise VideoError(
            f"video backend {backend!r} is defined in the main script, which the decoder process does not import; put "
            "it into a module, or read without a timeout"
        )
    return place
