"""The decoder process: `python -c "from videoxl.media.worker import main; main()" REQUEST` (see `process.py`)."""

from __future__ import annotations

import json
import os
import struct
import sys
import threading
from dataclasses import fields

from videoxl.errors import VideoXLError
from videoxl.media.choice import FrameChoice
from videoxl.media.decode import decode_resized
from videoxl.media.decoders import DECODERS
from videoxl.media.index import VideoInfo, index_video
from videoxl.utils.registry import load_place


def main() -> None:
    """Answer one request on standard output."""
    _die_with_parent()
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # prints of libraries must not get between the messages
    request = json.loads(sys.argv[1])
    try:
        if request["backend"] not in DECODERS.names():  # registered by the parent, in a module of its own
            DECODERS.register(request["backend"], load_place(request["decoder"]))
        index = index_video(request["path"])
        indices = FrameChoice(**request["choice"]).indices(index.info)
        info = {f.name: getattr(index.info, f.name) for f in fields(VideoInfo) if f.name != "timestamps"}
        times = index.info.timestamps.tobytes()
        _send(output, {"kind": "info", "info": info, "times": len(times)}, times + indices.tobytes())
        frames = decode_resized(index, indices.tolist(), request["backend"], request["side"], request["decoder_scaler"])
        for number, frame in frames:
            _send(output, {"kind": "frame", "number": number, "side": request["side"]}, frame.tobytes())
        _send(output, {"kind": "end"})
    except VideoXLError as error:
        _send(output, {"kind": "error", "type": type(error).__name__, "message": str(error)})
    except BrokenPipeError:  # the parent closed the stream: it needs no more
        os._exit(0)


def _send(output, header: dict, payload: bytes = b"") -> None:
    text = json.dumps(header | {"bytes": len(payload)}).encode()
    output.write(struct.pack("<I", len(text)) + text + payload)
    output.flush()


def _die_with_parent() -> None:
    """Exit when the parent does, for any reason: our standard input is closed then."""

    def watch() -> None:
        sys.stdin.buffer.read()
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()
