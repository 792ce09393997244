"""One decoder process as its parent sees it: start it, send requests, read messages, kill it."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from videoxl import errors
from videoxl.errors import VideoError, VideoTimeoutError

_COMMAND = "from videoxl.media.worker import main; main()"


class DecoderProcess:
    """A child that decodes one file. Any thread may `kill` it; one at a time may `receive`."""

    def __init__(self, path: str):
        self._path = path
        # The child finds this package, and decoders of other packages, where this process does.
        root = str(Path(__file__).resolve().parents[2])
        paths = [root, *(path for path in sys.path if isinstance(path, str) and path)]
        # One thread each: they decode and resize, and there is a process for every core.
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        environment = os.environ | threads | {"PYTHONPATH": os.pathsep.join(paths)}
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115  (it goes with this object)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", _COMMAND, path],  # the path for those who look at the list of processes
            stdin=subprocess.PIPE,  # held open: the child ends when it is closed, however this process ends
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=environment,
            start_new_session=True,  # Ctrl-C reaches the parent alone, which then kills the child
        )
        self._killed = False

    @property
    def pid(self) -> int:
        return self._process.pid

    def request(self, **request) -> None:
        """Send a request. A child that is gone is noticed by `receive`."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError, ValueError):
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()

    def receive(self, timeout: float | None) -> tuple[dict, bytes]:
        """The next message. Raises `VideoTimeoutError`, or the error that the child met."""
        deadline = None if timeout is None else time.monotonic() + timeout
        (length,) = struct.unpack("<I", self._read(4, deadline, timeout))
        header = json.loads(self._read(length, deadline, timeout))
        payload = self._read(header.get("bytes", 0), deadline, timeout)
        if header["kind"] == "error":
            raise getattr(errors, header["type"], VideoError)(header["message"])
        return header, payload

    def kill(self) -> None:
        """End the child now; a second call does nothing."""
        if self._killed:
            return
        self._killed = True
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        # Its output stays open: a thread may be reading it, and then meets its end.
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()

    def _read(self, number: int, deadline: float | None, timeout: float | None) -> bytes:
        assert self._process.stdout is not None
        parts = []
        while number:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and (left <= 0 or not select.select([self._process.stdout], [], [], left)[0]):
                raise VideoTimeoutError(
                    f"{self._path}: no frame for {timeout:g} s; the decoder was killed. Give a longer timeout, "
                    "another backend, or check the file"
                )
            part = os.read(self._process.stdout.fileno(), min(number, 1 << 20))
            if not part:
                raise VideoError(self._last_words())
            parts.append(part)
            number -= len(part)
        return b"".join(parts)

    def _last_words(self) -> str:
        code = self._process.wait()
        self._stderr.seek(0)
        said = self._stderr.read().decode(errors="replace").strip().splitlines()
        return f"{self._path}: the decoder process ended with status {code}" + "".join(f": {s}" for s in said[-1:])
