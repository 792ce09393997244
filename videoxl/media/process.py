"""Decode in a child process that can be killed: the only way to stop a decoder that hangs inside C code.

The child writes messages to its standard output: a length, a JSON header, and the bytes that the header announces. It
is started from a command line, not by `multiprocessing`, so that it never imports the user's script, and it imports
neither torch nor transformers.
"""

from __future__ import annotations

import json
import os
import select
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from dataclasses import asdict
from pathlib import Path

import numpy as np

from videoxl import errors
from videoxl.errors import VideoError, VideoTimeoutError
from videoxl.media.decoders import DECODERS
from videoxl.media.decoders.base import Frames
from videoxl.media.index import VideoInfo
from videoxl.utils.numbers import is_number
from videoxl.utils.read_ahead import ReadAhead
from videoxl.utils.registry import place_of

QUEUED_FRAMES = 80  # two chunks, 27 MB at 336 pixels

_COMMAND = "from videoxl.media.worker import main; main()"


class DecoderProcess:
    """A child that indexes a file and decodes chosen frames; see `videoxl.media.stream.open_video` for the arguments.

    Attributes:
        info: the file's `VideoInfo`. indices: [n] int64, the chosen frames.
    """

    def __init__(self, path: str, choice, backend: str, side: int, decoder_scaler: bool, timeout: float):
        if not is_number(timeout) or not timeout > 0:
            raise VideoError(f"timeout is {timeout!r}; it must be above 0 seconds")
        self._path = path
        self._timeout = timeout
        self._closed = False
        self._ahead: ReadAhead | None = None
        request = {
            "path": path,
            "choice": asdict(choice),
            "backend": backend,
            "decoder": _importable(backend),
            "side": side,
            "decoder_scaler": decoder_scaler,
        }
        # The child finds this package, and decoders of other packages, where this process does.
        root = str(Path(__file__).resolve().parents[2])
        paths = [root, *(path for path in sys.path if isinstance(path, str) and path)]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115  (closed with this object)
        self._process = subprocess.Popen(
            [sys.executable, "-c", _COMMAND, json.dumps(request)],
            stdin=subprocess.PIPE,  # held open: the child ends when it is closed, however this process ends
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=environment,
            start_new_session=True,  # Ctrl-C reaches only the parent, which then kills the child
        )
        try:
            header, payload = self._receive()
            times = np.frombuffer(payload[: header["times"]], dtype=np.float64)
            self.indices = np.frombuffer(payload[header["times"] :], dtype=np.int64)
            self.info = VideoInfo(timestamps=times, **header["info"])
        except BaseException:
            self.close()
            raise

    def frames(self) -> Frames:
        """Yield (frame number, uint8 [S, S, 3]); ends the child when done, closed or interrupted.

        A thread reads frames from the child meanwhile, so that decoding continues while the model computes.
        """
        self._ahead = ReadAhead(self._messages(), QUEUED_FRAMES)
        try:
            for header, payload in self._ahead:
                side = header["side"]
                yield header["number"], np.frombuffer(payload, dtype=np.uint8).reshape(side, side, 3)
        finally:
            self.close()

    def _messages(self) -> Generator[tuple[dict, bytes], None, None]:
        """Frames as they arrive, up to the end message."""
        while True:
            message = self._receive()
            if message[0]["kind"] == "end":
                return
            yield message

    def close(self) -> None:
        """Kill the child if it still runs."""
        if self._closed:
            return
        self._closed = True
        if self._ahead is not None:
            self._ahead.close()
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()

    def __del__(self):
        if hasattr(self, "_process"):
            self.close()

    def _receive(self) -> tuple[dict, bytes]:
        deadline = time.monotonic() + self._timeout
        (length,) = struct.unpack("<I", self._read(4, deadline))
        header = json.loads(self._read(length, deadline))
        payload = self._read(header.get("bytes", 0), deadline)
        if header["kind"] == "error":
            raise getattr(errors, header["type"], VideoError)(header["message"])
        return header, payload

    def _read(self, number: int, deadline: float) -> bytes:
        assert self._process.stdout is not None
        parts = []
        while number:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._process.stdout], [], [], left)[0]:
                raise VideoTimeoutError(
                    f"{self._path}: no frame for {self._timeout:g} s; the decoder was killed. Give a longer timeout, "
                    "another backend, or check the file"
                )
            part = os.read(self._process.stdout.fileno(), min(number, 1 << 20))
            if not part:
                code = self._process.wait()
                self._stderr.seek(0)
                said = self._stderr.read().decode(errors="replace").strip().splitlines()
                raise VideoError(
                    f"{self._path}: the decoder process ended with status {code}" + "".join(f": {s}" for s in said[-1:])
                )
            parts.append(part)
            number -= len(part)
        return b"".join(parts)


def _importable(backend: str) -> str:
    """The path by which the child imports a decoder. Raises `VideoError` for one defined in the main script."""
    place = place_of(DECODERS.get(backend))
    if place.startswith("__main__:"):
        raise VideoError(
            f"video backend {backend!r} is defined in the main script, which the decoder process does not import; put "
            "it into a module, or read without a timeout"
        )
    return place
