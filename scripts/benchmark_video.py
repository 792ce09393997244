"""Time and memory of decoding uniform frames of a long file, with videoxl and with decord, each in its own process.

    python scripts/benchmark_video.py                     a 20-minute 480p H.264 file is made first (once)
    python scripts/benchmark_video.py --video FILM.mp4 --frames 1024 128 --rounds 3 --output result.json

videoxl decodes with `open_video` as `videoxl ask` calls it: resized frames in bounded chunks. decord returns all frames
at once and in full size, as the published code calls it (`get_batch`). It is skipped where it is not installed.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import psutil

FPS, SIZE = 30, (854, 480)
SCENES = 120  # seconds to encode; a longer file repeats them


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--video", type=Path, help="a file of your own")
    parser.add_argument("--seconds", type=int, default=1200, help="length of the generated file")
    parser.add_argument("--frames", type=int, nargs="+", default=[1024, 128])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, help="JSON file of the results")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        return child(given.child[0], given.video, int(given.child[1]))
    video = given.video or made(given.seconds)
    who = ["here", *(["decord"] if importlib.util.find_spec("decord") else [])]
    if "decord" not in who:
        print("decord is not installed: nothing to compare with (pip install decord)", file=sys.stderr)
    results = []
    for frames in given.frames:
        runs = {name: [] for name in who}
        for _ in range(given.rounds):  # alternating, so that both run under the same load
            for name in who:
                runs[name].append(measured(name, video, frames))
        for name in who:
            seconds = statistics.median(run["seconds"] for run in runs[name])
            peak = statistics.median(run["peak_mib"] for run in runs[name])
            results.append({"who": name, "frames": frames, "seconds": seconds, "peak_mib": peak, "runs": runs[name]})
            print(f"{frames:5d} frames  {name:7s} {seconds:7.2f} s  {peak:7.0f} MiB", flush=True)
        if len(who) == 2:
            here, there = results[-2:]
            print(
                f"{frames:5d} frames  here / decord: {here['seconds'] / there['seconds']:.2f} of the time, "
                f"{here['peak_mib'] / there['peak_mib']:.2f} of the memory"
            )
    if given.output:
        about = {"video": video.name, "bytes": video.stat().st_size, "python": platform.python_version()}
        given.output.write_text(json.dumps({**about, "results": results}, indent=1) + "\n")
    return 0


def measured(name: str, video: Path, frames: int) -> dict:
    command = [sys.executable, __file__, "--video", str(video), "--child", name, str(frames)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def child(name: str, video: Path, frames: int) -> int:
    """Decode once and print seconds and the peak of resident memory: above the level after the imports, including
    decoder processes (with their imports).
    """
    peak = Peak()
    if name == "decord":
        from decord import VideoReader, cpu

        peak.start()
        started = time.perf_counter()
        reader = VideoReader(str(video), ctx=cpu(0), num_threads=0)
        got = len(reader.get_batch(np.linspace(0, len(reader) - 1, frames, dtype=int).tolist()).asnumpy())
    else:
        from videoxl.media.choice import FrameChoice
        from videoxl.media.pixels import VideoXLImageProcessor
        from videoxl.media.stream import open_video

        peak.start()
        started = time.perf_counter()
        with open_video(str(video), VideoXLImageProcessor(), FrameChoice(num_frames=frames), timeout=60) as stream:
            got = sum(len(chunk.frames) for chunk in stream)
    seconds = time.perf_counter() - started
    print(json.dumps({"seconds": round(seconds, 3), "peak_mib": round(peak.mib, 1), "frames": got}))
    return 0


class Peak:
    """Watches the resident memory of this process and its children, which `getrusage` counts from before their exec.

    Attributes:
        mib: the largest sum so far in MiB, minus the sum at the start.
    """

    def __init__(self):
        self.mib = 0.0

    def start(self) -> None:
        self._before = self._now()
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            self.mib = max(self.mib, self._now() - self._before)
            time.sleep(0.01)

    def _now(self) -> float:
        total = 0
        for process in (psutil.Process(), *psutil.Process().children()):
            with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended
                total += process.memory_info().rss
        return total / 2**20


def made(seconds: int) -> Path:
    """An H.264 file of this length in the temporary folder, kept there: two minutes of scenes, over and over."""
    path = Path(tempfile.gettempdir()) / f"videoxl-benchmark-{seconds}s.mp4"
    if not path.is_file():
        draft, part = path.with_suffix(".part.mp4"), path.with_suffix(".scenes.mp4")
        encode(part, min(seconds, SCENES))
        repeat(part, draft, seconds)
        part.unlink()
        draft.replace(path)
    return path


def encode(path: Path, seconds: int) -> None:
    """Encode moving gradients, blocks and grain with x264's default settings."""
    import av
    from tqdm import tqdm

    rng = np.random.default_rng(0)
    width, height = SIZE
    grain = rng.integers(0, 12, (8, height, width, 1), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in tqdm(range(seconds * FPS), desc=f"making {path}", unit="frame", disable=None):
            scene = number // 240
            colours = np.random.default_rng(scene).integers(0, 200, (8, 3), dtype=np.uint8)
            frame = np.empty((height, width, 3), dtype=np.uint8)
            frame[:] = ((np.arange(width) + 2 * number) % 256 // 2).astype(np.uint8)[None, :, None]
            for place, colour in enumerate(colours):
                x, y = (place * 97 + 3 * number) % (width - 120), (place * 61 + (place + 1) * number) % (height - 90)
                frame[y : y + 90, x : x + 120] = colour
            frame += grain[number % 8]
            for packet in stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def repeat(source: Path, target: Path, seconds: int) -> None:
    """Repeat the packets of `source` up to `seconds`; each repetition starts with a keyframe."""
    import av

    with av.open(str(target), "w") as output:
        stream = None
        for start in range(0, seconds, SCENES):
            with av.open(str(source)) as container:
                video = container.streams.video[0]
                stream = stream or output.add_stream_from_template(video)
                shift, end = round(start / video.time_base), round((seconds - start) / video.time_base)
                for packet in container.demux(video):
                    if packet.dts is None or packet.pts >= end:
                        continue
                    packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                    packet.stream = stream
                    output.mux(packet)


if __name__ == "__main__":
    sys.exit(main())
