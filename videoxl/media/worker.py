"""A decoder process: `python -c "from videoxl.media.worker import main; main()"` (see `workers.py`).

It reads one JSON request a line from standard input, and answers with messages: a length, a JSON header, bytes. It ends
when its standard input is closed, so it never outlives its parent.
"""

from __future__ import annotations

import json
import os
import queue
import struct
import threading
from dataclasses import asdict, fields
from functools import partial

import numpy as np

from videoxl.errors import VideoXLError
from videoxl.media.choice import FrameChoice
from videoxl.media.decode import decode_resized
from videoxl.media.decoders import DECODERS
from videoxl.media.decoders.pyav import PartReader
from videoxl.media.index_cache import cached_index
from videoxl.media.info import VideoIndex, VideoInfo
from videoxl.media.orientation import Orientation
from videoxl.media.parts import Part, decoded_frames, plan_parts
from videoxl.media.resize import resize_and_crop_frame
from videoxl.utils.registry import load_place

_NICENESS = 10
_ARRAYS = ("timestamps", "keyframes")  # of `VideoInfo`; they travel as bytes


def main() -> None:
    """Answer requests until standard input ends."""
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints must not get between the messages
    requests = _read_requests()
    worker = Worker(partial(_send, output))
    while True:
        request = requests.get()
        try:
            getattr(worker, "do_" + request.pop("do"))(**request)
        except BrokenPipeError:  # the parent closed the stream: it has what it wants
            os._exit(0)
        except VideoXLError as error:
            _send(output, {"kind": "error", "type": type(error).__name__, "message": str(error)})
        except MemoryError:
            _send(output, {"kind": "error", "type": "VideoError", "message": f"{worker.path}: not enough memory"})
        except Exception as error:  # whatever a library raises: the parent must learn the cause
            said = " ".join(str(error).split()) or "no message"
            message = f"{worker.path} cannot be decoded: {type(error).__name__}: {said}"
            _send(output, {"kind": "error", "type": "VideoError", "message": message})


class Worker:
    """What a decoder process does for one file."""

    def __init__(self, send):
        self._send = send
        self.path = ""
        self._index: VideoIndex | None = None
        self._reader: PartReader | None = None

    def do_index(self, path: str, choice: dict, backend: str, decoder: str) -> None:
        """Index the file, choose frames, plan parts; send all three."""
        self.path = path
        if backend not in DECODERS.names():  # registered by the parent, in a module of its own
            DECODERS.register(backend, load_place(decoder))
        self._index = cached_index(path)
        info = self._index.info
        indices = FrameChoice(**choice).indices(info)
        parts = plan_parts(self._index, indices.tolist()) if backend == "pyav" and self._index.timed else []
        plain = {f.name: getattr(info, f.name) for f in fields(VideoInfo) if f.name not in _ARRAYS}
        arrays = [info.timestamps, np.zeros(0, np.int64) if info.keyframes is None else info.keyframes, indices]
        header = {
            "kind": "info",
            "info": plain,
            "lengths": [array.nbytes for array in arrays],
            "has_keyframes": info.keyframes is not None,
            "parts": [asdict(part) for part in parts],
            "cost": decoded_frames(self._index, parts),
        }
        self._send(header, b"".join(array.tobytes() for array in arrays))

    def do_open(
        self, path: str, rotation: int, mirrored: bool, side: int, scaler: bool, stretch: list[float], nice: bool
    ) -> None:
        """Get ready for parts; `nice`: the threads that feed the GPU's decoder come first."""
        if nice:
            os.nice(_NICENESS)
        self.path = path
        then = partial(resize_and_crop_frame, side=side, stretch=(stretch[0], stretch[1]))
        self._reader = PartReader(path, Orientation(rotation, mirrored), side if scaler else None, then)

    def do_part(self, number: int, part: dict) -> None:
        """Decode one part."""
        assert self._reader is not None
        for frame_number, frame in self._reader.read(Part(**part)):
            self._send({"kind": "frame", "part": number, "number": frame_number, "side": len(frame)}, frame.tobytes())
        self._send({"kind": "end", "part": number})

    def do_all(self, indices: list[int], backend: str, side: int, scaler: bool, stored_shape: bool) -> None:
        """Decode all frames in one go: decoders other than PyAV, and files whose frames must be counted."""
        assert self._index is not None
        for frame_number, frame in decode_resized(self._index, indices, backend, side, scaler, stored_shape):
            self._send({"kind": "frame", "part": 0, "number": frame_number, "side": len(frame)}, frame.tobytes())
        self._send({"kind": "end", "part": 0})


def read_info(header: dict, payload: bytes) -> tuple[VideoInfo, np.ndarray]:
    """The parent's side of `do_index`: what the file holds, and the chosen frames."""
    ends = np.cumsum(header["lengths"]).tolist()
    times, keyframes, indices = payload[: ends[0]], payload[ends[0] : ends[1]], payload[ends[1] : ends[2]]
    plain = header["info"] | {"oddities": tuple(header["info"]["oddities"])}
    info = VideoInfo(timestamps=np.frombuffer(times, dtype=np.float64), **plain)
    if header["has_keyframes"]:
        info.keyframes = np.frombuffer(keyframes, dtype=np.int64)
    return info, np.frombuffer(indices, dtype=np.int64)


def _send(output, header: dict, payload: bytes = b"") -> None:
    text = json.dumps(header | {"bytes": len(payload)}).encode()
    output.write(struct.pack("<I", len(text)) + text + payload)
    output.flush()


def _read_requests() -> queue.Queue:
    """Requests as they come. At the end of standard input the process ends, whatever it is doing."""
    requests: queue.Queue = queue.Queue()

    def read() -> None:
        rest = b""
        # By the system's call: a thread that waits in Python's own reader would abort the interpreter's exit.
        while block := os.read(0, 1 << 16):
            *lines, rest = (rest + block).split(b"\n")
            for line in lines:
                requests.put(json.loads(line))
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    return requests
