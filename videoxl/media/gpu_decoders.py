"""The GPU's decoders take parts of a file: compared with the CPU first, and leaving to it what they cannot do."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import torch

from videoxl.errors import VideoXLError, one_line
from videoxl.media.info import VideoInfo
from videoxl.media.nvdec import NvdecReader, decoder_units, load_nvdec, why_not
from videoxl.media.part_queue import PartQueue
from videoxl.media.parts import Part

_ROUNDING = 1  # levels by which a frame may differ from the CPU's; on x86 processors none does
_PATIENCE = 64  # frames that may be given back before the GPU is left alone, if it gave fewer than that


@dataclass
class Gpu:
    """Where a file is decoded; `refusal` says why the GPU does not decode it."""

    nvdec: ModuleType | None
    device: torch.device
    units: int
    refusal: str | None = None


def find_gpu(info: VideoInfo, timed: bool, device: torch.device | None, side: int, scaler: bool, asked: bool) -> Gpu:
    """The GPU for a file.

    Args:
        timed: whether frames can be found by their times.
        asked: the user named the GPU's decoder; then what is not installed is an error instead of a refusal.

    Raises:
        MissingDependencyError, VideoError: `asked`, and PyNvVideoCodec, a GPU or its driver is missing.
    """
    if device is None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cuda" and device.index is None and torch.cuda.is_available():
        device = torch.device("cuda", torch.cuda.current_device())  # another thread's may be another one
    try:
        nvdec = load_nvdec(device)
    except VideoXLError as error:
        if asked:
            raise
        return Gpu(None, device, 0, str(error))
    refusal = why_not(info, side, scaler) if timed else "its frames are counted from the start"
    if refusal is not None:
        return Gpu(nvdec, device, 0, refusal)
    try:
        units = decoder_units(nvdec, info, device)
    except Exception as error:  # whatever PyNvVideoCodec raises
        return Gpu(nvdec, device, 0, f"the GPU's decoder failed ({type(error).__name__}: {one_line(error)})")
    return Gpu(nvdec, device, units, None if units else f"the GPU cannot decode {info.codec} of this size")


class GpuDecoders:
    """Takes parts from a queue in threads, one for each unit of the GPU.

    The first frame of a file is decoded by the CPU too: if the two differ, the file is the CPU's.

    Args:
        first: the part of one frame that a process decodes as well.
        give_up: called with a reason, once, when the GPU takes no more parts although there are some.

    Attributes:
        units: decoders at work.
    """

    def __init__(
        self, queue: PartQueue, first: Part, info: VideoInfo, gpu: Gpu, side: int, stored_shape: bool,
        give_up: Callable[[str], None],
    ):  # fmt: skip
        self._queue, self._first, self._info, self._gpu = queue, first, info, gpu
        self._side, self._stored_shape, self._give_up = side, stored_shape, give_up
        self._lock = threading.Lock()
        self._stopped = False
        self._read = self._given_back = 0
        self.units = gpu.units

    def run(self) -> None:
        """Compare the first frame, then take parts until there are none."""
        reader = None
        try:
            reader = self._reader()
            refusal = self._compare(reader)
        except Exception as error:  # whatever PyNvVideoCodec raises
            refusal = f"the GPU's decoder failed ({type(error).__name__}: {one_line(error)})"
        if refusal is not None:
            if reader is not None:
                reader.close()
            self._stop(refusal)
            return
        assert reader is not None
        for _ in range(self.units - 1):
            threading.Thread(target=self._open_and_take, args=(reader.settings,), daemon=True).start()
        self._take_with(reader)

    def _reader(self, settings: bytes | None = None) -> NvdecReader:
        assert self._gpu.nvdec is not None
        return NvdecReader(self._gpu.nvdec, self._info, self._gpu.device, self._side, self._stored_shape, settings)

    def _compare(self, reader: NvdecReader) -> str | None:
        """Why the GPU cannot be trusted with this file; None where it can."""
        own = next(iter(reader.read(self._first)), None)
        expected = self._queue.wait_for_first()
        if expected is None:
            return "its first frame cannot be compared"
        if own is None or own[0] != expected[0] or _difference(own[1], expected[1]) > _ROUNDING:
            return "the GPU decodes its first frame in another way"
        return None

    def _open_and_take(self, settings: bytes | None) -> None:
        try:
            reader = self._reader(settings)
        except Exception as error:  # such as no memory for another decoder
            self._lose_one(error)
            return
        self._take_with(reader)

    def _take_with(self, reader: NvdecReader) -> None:
        try:
            with reader:
                self._take(reader)
        except Exception as error:  # whatever PyNvVideoCodec raises
            self._lose_one(error)

    def _take(self, reader: NvdecReader) -> None:
        while not self._stopped and (taken := self._queue.take(steady=False)) is not None:
            number, part = taken
            assert part is not None
            read = 0
            try:
                for frame in reader.read(part):
                    if not self._queue.put(number, frame):
                        return
                    read += 1
            finally:
                if read == len(part.numbers):
                    self._queue.finish(number)
                else:
                    self._queue.give_back(number, part.rest(read))
            with self._lock:
                self._read += read
                self._given_back += len(part.numbers) - read
                is_useless = self._given_back > max(_PATIENCE, self._read)
            if is_useless:
                self._stop("the GPU's decoder does not give most of its frames")

    def _lose_one(self, error: Exception) -> None:
        with self._lock:
            self.units -= 1
            is_last = self.units <= 0
        self._queue.leave(steady=False)
        if is_last:
            self._stop(f"the GPU's decoder failed ({type(error).__name__}: {one_line(error)})")

    def _stop(self, reason: str) -> None:
        with self._lock:
            if self._stopped:
                return
            self._stopped, self.units = True, 0
        if not self._queue.closed:
            self._give_up(reason)


def _difference(own: torch.Tensor, expected: np.ndarray) -> int:
    return int(np.abs(own.cpu().numpy().astype(int) - expected).max())
