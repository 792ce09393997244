"""Decoders that share one file: processes, and the GPU's units where they are asked for. Frames come out in order.

Every part is decoded by itself, so the frames are the same for any number of decoders.
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from videoxl.errors import VideoError
from videoxl.media.choice import FrameChoice
from videoxl.media.container import check_file
from videoxl.media.decoders import DECODERS
from videoxl.media.decoders.base import GPU_BACKENDS, Frames
from videoxl.media.gpu_decoders import Gpu, GpuDecoders, find_gpu
from videoxl.media.part_queue import FRAMES_AHEAD_ON_GPU, PartQueue
from videoxl.media.parts import Part, split_first
from videoxl.media.process import DecoderProcess
from videoxl.media.worker import read_info
from videoxl.utils.cores import available_cores
from videoxl.utils.numbers import is_number, is_whole_number
from videoxl.utils.registry import place_of

if TYPE_CHECKING:
    import torch

_WORTH_ALL = 1 << 26  # bytes of a file that is surely worth all processes
_WORTH_A_PROCESS = 40e6  # pixels to decode; less takes no longer than to start a process
_WORTH_THE_GPU = 1e9  # pixels to decode; less takes processes about as long as to open the GPU's decoders
_CORES_A_UNIT = (
    2  # left to the threads that feed the GPU's decoders: with all cores busy, both were slower than it alone
)
_UNTIL_THREADS_END = 0.1  # seconds


class DecoderWorkers:
    """Indexes a file and decodes chosen frames beside this thread; see `videoxl.media.stream.open_video`.

    Attributes:
        info: the file's `VideoInfo`. indices: [n] int64, the chosen frames.
        workers: processes that decode. units: decoders of the GPU that do.
        notes: sentences for the user; some are added while frames are read.
    """

    def __init__(
        self, path: str, choice: FrameChoice, backend: str, side: int, scaler: bool, timeout: float, most: int | None,
        device: torch.device | None = None,
    ):  # fmt: skip
        if not is_number(timeout) or not 0 < timeout < math.inf:
            raise VideoError(f"timeout is {timeout!r}; it must be a number of seconds above 0, or None")
        self._path, self._timeout = path, timeout
        self._side, self._scaler, self._choice = side, scaler, choice
        self._threads: list[threading.Thread] = []
        self._queue: Any = None  # a `PartQueue`, once the parts are known
        self._gpu: GpuDecoders | None = None
        self._closed = False
        self._taking = 0  # processes that take parts
        self._lock = threading.Lock()
        self.notes: list[str] = []
        most = available_cores() if most is None else most
        if not is_whole_number(most) or most < 1:
            raise VideoError(f"workers is {most!r}; it must be a whole number of at least 1, or None")
        self._decoder = decoder = "pyav" if backend in GPU_BACKENDS else backend
        # The others start while the first one reads the index: two, or all for a file that is worth it.
        begin = 1
        if decoder == "pyav" and backend != "nvdec":
            begin = min(most, most if _size(path) >= _WORTH_ALL else 2)
        self._processes = [DecoderProcess(path) for _ in range(begin)]
        try:
            first = self._processes[0]
            first.request(do="index", path=path, choice=asdict(choice), backend=decoder, decoder=_importable(decoder))
            header, payload = first.receive(timeout)
            self.info, self.indices = read_info(header, payload)
            parts = [Part(**part) for part in header["parts"]]
            pixels = header["cost"] * self.info.width * self.info.height
            number = min(most, max(len(parts), 1), 1 + int(pixels / _WORTH_A_PROCESS))
            gpu = None
            if backend == "nvdec" or (backend == "auto" and pixels >= _WORTH_THE_GPU):
                gpu = find_gpu(self.info, bool(parts), device, side, scaler, asked=backend == "nvdec")
            if gpu is not None and gpu.refusal is None:
                self._begin_with_gpu(backend, gpu, parts, number)
            else:
                if gpu is not None and backend == "nvdec":
                    self._say_cpu(gpu.refusal)
                self._queue = PartQueue(path, parts or [None])
                self._set_processes(number)
        except BaseException:
            self.close()
            raise

    @property
    def workers(self) -> int:
        return len(self._processes)

    @property
    def units(self) -> int:
        return 0 if self._gpu is None else self._gpu.units

    def _begin_with_gpu(self, backend: str, gpu: Gpu, parts: list[Part], number: int) -> None:
        parts = split_first(parts)
        self._queue = queue = PartQueue(self._path, parts, for_steady=1)
        queue.steady_take_all = backend == "auto"
        queue.ahead = FRAMES_AHEAD_ON_GPU

        def give_up(reason: str) -> None:
            self.notes.append(f"the rest of {self._path} is decoded by the CPU: {reason}")
            queue.quick = 0
            queue.let_steady_take_all()
            with contextlib.suppress(OSError):  # those that run go on
                self._set_processes(number)

        queue.quick = gpu.units
        self._gpu = GpuDecoders(queue, parts[0], self.info, gpu, self._side, self._choice.stored_shape, give_up)
        beside = max(1, number - _CORES_A_UNIT * gpu.units)
        self._set_processes(beside if backend == "auto" else 1)
        self._in_thread(self._gpu.run)

    def _say_cpu(self, reason: str | None) -> None:
        self.notes.append(f"{self._path} is decoded by the CPU: {reason}")

    def _set_processes(self, number: int) -> None:
        """Let `number` processes take parts; those that do so already go on."""
        with self._lock:
            if not self._closed:
                self._start(number)

    def _start(self, number: int) -> None:
        for spare in self._processes[number:]:
            spare.kill()
        del self._processes[number:]
        self._processes += [DecoderProcess(self._path) for _ in range(number - len(self._processes))]
        self._queue.steady += len(self._processes) - self._taking
        stretch = (1.0, 1.0) if self._choice.stored_shape else self.info.stretch()
        turned = {"rotation": self.info.rotation, "mirrored": self.info.mirrored}
        for process in self._processes[self._taking :]:
            process.request(
                do="open", path=self._path, **turned, side=self._side, scaler=self._scaler, stretch=list(stretch),
                nice=self.units > 0,
            )  # fmt: skip
            self._in_thread(self._take_parts, process)
        self._taking = len(self._processes)

    def _in_thread(self, work, *arguments) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _take_parts(self, process: DecoderProcess) -> None:
        while (taken := self._queue.take()) is not None:
            number, part = taken
            try:
                self._ask_for(process, number, part)
                while (message := process.receive(self._timeout))[0]["kind"] != "end":
                    header, payload = message
                    frame = np.frombuffer(payload, dtype=np.uint8).reshape(header["side"], header["side"], 3)
                    self._queue.put(number, (header["number"], frame))
                self._queue.finish(number)
            except BaseException as error:  # kept for whoever reads up to it
                self._queue.fail(number, error)
                break
        self._queue.leave(steady=True)
        process.kill()

    def _ask_for(self, process: DecoderProcess, number: int, part: Part | None) -> None:
        if part is not None:
            process.request(do="part", number=number, part=asdict(part))
            return
        process.request(
            do="all", indices=self.indices.tolist(), backend=self._decoder, side=self._side, scaler=self._scaler,
            stored_shape=self._choice.stored_shape,
        )  # fmt: skip

    def frames(self) -> Frames:
        """Yield (frame number, uint8 [S, S, 3]) in order; ends the processes when done, closed or interrupted.

        Frames that the GPU decoded are tensors there.
        """
        try:
            for number in range(len(self._queue)):
                # The process that decodes it has a limit of its own.
                while (frame := self._queue.next(number, 2 * self._timeout)) is not None:
                    yield frame
            if self._queue.rescued:
                self.notes.append(
                    f"{self._queue.rescued} frames of {self._path} were decoded by the CPU: the GPU's decoder did not "
                    "give them"
                )
        finally:
            self.close()

    def close(self) -> None:
        """Kill the processes that still run."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        if self._queue is not None:
            self._queue.close()
        for process in self._processes:
            process.kill()
        for thread in self._threads:  # each meets the end of its process
            if thread is not threading.current_thread():
                thread.join(_UNTIL_THREADS_END)

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
