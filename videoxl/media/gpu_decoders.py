"""The GPU's decoders take parts of a file: compared with the CPU first, and leaving to it what they cannot do."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import torch

from videoxl.errors import VideoXLError
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
        return Gpu(nvdec, device, 0, f"the GPU's decoder failed ({_one_line(error)})")
    return Gpu(nvdec, device, units, None if units else f"the GPU cannot decode {info.codec} of this size")


class GpuDecoders:
    """Takes parts from a queue in threads, one for each unit of the GPU.

    The first frame of a file is decoded by the CPU too: if the two differ, the file is the CPU's.

    Args:
        first: the part of one frame that a process decodes as well.
        give_up: called with a reason when the GPU takes no more parts.

    Attributes:
        units: decoders at work. given_back: frames that they did not give.
    """

    def __init__(
        self, queue: PartQueue, first: Part, info: VideoInfo, gpu: Gpu, side: int, stored_shape: bool,
        give_up: Callable[[str], None],
    ):  # fmt: skip
        self._queue, self._first, self._info, self._gpu = queue, first, info, gpu
        self._side, self._stored_shape, self._give_up = side, stored_shape, give_up
        self._lock = threading.Lock()
        self.units = gpu.units
        self.given_back = 0
        self._read = 0

    def run(self) -> None:
        """Compare the first frame, then take parts until there are none."""
        try:
            reader = self._reader()
            own = next(iter(reader.read(self._first)), None)
        except Exception as error:  # whatever PyNvVideoCodec raises
            self._refuse(f"the GPU's decoder failed ({_one_line(error)})")
            return
        expected = self._queue.wait_for_first()
        if expected is None:
            return  # closed, or the CPU met an error, which the reader meets
        if own is None or own[0] != expected[0] or _difference(own[1], expected[1]) > _ROUNDING:
            self._refuse("the GPU decodes its first frame in another way")
            return
        for _ in range(self.units - 1):
            threading.Thread(target=self._open_and_take, daemon=True).start()
        self._take(reader)

    def _refuse(self, reason: str) -> None:
        self.units = 0
        self._give_up(reason)

    def _reader(self) -> NvdecReader:
        assert self._gpu.nvdec is not None
        return NvdecReader(self._gpu.nvdec, self._info, self._gpu.device, self._side, self._stored_shape)

    def _open_and_take(self) -> None:
        try:
            reader = self._reader()
        except Exception as error:  # no memory for another one
            self._lose_one(error)
            return
        self._take(reader)

    def _take(self, reader: NvdecReader) -> None:
        while self.units and (taken := self._queue.take(steady=False)) is not None:
            number, part = taken
            assert part is not None
            read, failure = 0, None
            try:
                for frame in reader.read(part):
                    self._queue.put(number, frame)
                    read += 1
            except Exception as error:  # whatever PyNvVideoCodec raises
                failure = error
            if read == len(part.numbers):
                self._queue.finish(number)
            else:
                self._queue.give_back(number, part.rest(read))
            with self._lock:
                self._read += read
                self.given_back += len(part.numbers) - read
                useless = self.units > 0 and self.given_back > max(_PATIENCE, self._read)
            if useless:
                self._refuse("the GPU's decoder does not give most of its frames")
                break
            if failure is not None:
                self._lose_one(failure)
                break
        reader.close()

    def _lose_one(self, error: Exception) -> None:
        with self._lock:
            self.units -= 1
            last = self.units == 0
        if last:
            self._give_up(f"the GPU's decoder failed ({_one_line(error)})")


def _difference(own: torch.Tensor, expected: np.ndarray) -> int:
    return int(np.abs(own.cpu().numpy().astype(int) - expected).max())


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
