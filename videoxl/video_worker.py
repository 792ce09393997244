"""The decoder process: `python -c "from videoxl.video_worker import main; main()" REQUEST` (see `video_process`)."""

from __future__ import annotations

import json
import os
import struct
import sys
import threading
from dataclasses import fields

from videoxl.errors import VideoXLError
from videoxl.video import FrameChoice, decode_resized
from videoxl.video_index import VideoInfo, index_video


def main() -> None:
    """Answer one request on standard output."""
    _die_with_parent()
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints must not get between the messages
    request = json.loads(sys.argv[1])
    try:
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
    except BrokenPipeError:  # the parent closed the stream: it has what it wants
        os._exit(0)


def _send(output, header: dict, payload: bytes = b"") -> None:
    text = json.dumps(header | {"bytes": len(payload)}).encode()
    output.write(struct.pack("<I", len(text)) + text + payload)
    output.flush()


def _die_with_parent() -> None:
    """End when the parent does, however that happens: its end of our standard input is closed then."""

    def watch() -> None:
        sys.stdin.buffer.read()
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()
