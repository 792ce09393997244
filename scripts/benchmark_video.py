"""Time and memory of decoding frames of a long file, with videoxl and with its peers, each in its own process.

    python scripts/benchmark_video.py                     a 20-minute 480p H.264 file is made first (once)
    python scripts/benchmark_video.py --seconds 3600 --size 1920 1080 --scenes 40 --gop 120 --frames 2048 256
    python scripts/benchmark_video.py --video FILM.mp4 --who here keyframes nvdec auto before torchcodec --before DIR

`here` decodes with `open_video` as `videoxl ask` does: resized frames in bounded chunks; `keyframes` the same with the
nearest keyframes; `nvdec` and `auto` with these backends, on a GPU; `before` the code of another checkout. The peers
(`decord`, `torchcodec`, `torchcodec-approximate`, `pyav`) return frames in full size: decord all at once, as the
published code calls it (`get_batch`), torchcodec and PyAV one by one. A peer that is not installed is left out.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, os.environ.get("VIDEOXL_CHECKOUT", str(ROOT)))  # `before` finds another checkout

FPS = 30
SIZE = (854, 480)
PEERS = {"decord": "decord", "torchcodec": "torchcodec", "torchcodec-approximate": "torchcodec", "pyav": "av"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--video", type=Path, help="a file of your own")
    parser.add_argument("--seconds", type=int, default=1200, help="length of the generated file")
    parser.add_argument("--size", type=int, nargs=2, default=SIZE, metavar=("WIDTH", "HEIGHT"), help="its frames")
    parser.add_argument("--scenes", type=int, default=120, help="seconds that are encoded; the file repeats them")
    parser.add_argument("--gop", type=int, default=250, help="most frames from one keyframe to the next")
    parser.add_argument("--codec", default="libx264", help="encoder of the generated file")
    parser.add_argument("--frames", type=int, nargs="+", default=[1024, 128], help="numbers of frames to read")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each; the median counts")
    parser.add_argument("--who", nargs="+", default=["here", "decord"], help="what to run; see above")
    parser.add_argument("--workers", type=int, help="most decoder processes of `here` (default: one for each core)")
    parser.add_argument("--before", type=Path, default=ROOT, help="checkout whose code `before` runs")
    parser.add_argument("--output", type=Path, help="JSON file of the results")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        return child(given.child[0], given.video, int(given.child[1]), given.workers)
    video = given.video or made(given.seconds, tuple(given.size), given.codec, given.scenes, given.gop)
    who = [name for name in given.who if name not in PEERS or importlib.util.find_spec(PEERS[name])]
    for name in sorted({*given.who} - {*who}):
        print(f"{PEERS[name]} is not installed: nothing to compare with (pip install {PEERS[name]})", file=sys.stderr)
    results = []
    for frames in given.frames:
        runs = {name: [] for name in who}
        for _ in range(given.rounds):  # in turn, so that all meet the same neighbours
            for name in who:
                runs[name].append(measured(name, video, frames, given))
        for name in who:
            median = {
                key: statistics.median(run[key] for run in runs[name]) for key in ("seconds", "first", "peak_mib")
            }
            results.append({"who": name, "frames": frames, **median, "runs": runs[name]})
            ratio = median["seconds"] / results[-1 - who.index(name)]["seconds"]
            print(
                f"{frames:5d} frames  {name:22s} {median['seconds']:7.2f} s ({ratio:5.2f} x), first chunk "
                f"{median['first']:5.2f} s, {median['peak_mib']:6.0f} MiB, {runs[name][0]['frames']} read",
                flush=True,
            )
    if given.output:
        about = {"video": video.name, "bytes": video.stat().st_size, "python": platform.python_version()}
        given.output.write_text(json.dumps({**about, "results": results}, indent=1) + "\n")
    return 0


def measured(name: str, video: Path, frames: int, given: argparse.Namespace) -> dict:
    command = [sys.executable, __file__, "--video", str(video), "--child", name, str(frames)]
    if given.workers:
        command += ["--workers", str(given.workers)]
    root = given.before.resolve() if name == "before" else ROOT
    environment = os.environ | {"VIDEOXL_CHECKOUT": str(root)}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment, cwd=root)
    return json.loads(done.stdout.splitlines()[-1])


def child(name: str, video: Path, frames: int, workers: int | None) -> int:
    """Decode once; print seconds, also to the first chunk, and the peak of memory: proportional shares of this process
    and of decoder processes, above the level after the imports.
    """
    peak = Peak()
    reader = _peer if name in PEERS else _chunks
    prepared = reader(name, str(video), frames, workers)
    next(prepared)  # the imports
    peak.start()
    started, first, got = time.perf_counter(), None, 0
    for number in prepared:
        first = time.perf_counter() - started if first is None else first
        got += number
    seconds = time.perf_counter() - started
    peak.look()
    row = {"seconds": seconds, "first": first or seconds, "peak_mib": peak.mib, "frames": got}
    print(json.dumps({key: round(value, 3) for key, value in row.items()}))
    return 0


def _chunks(name: str, video: str, frames: int, workers: int | None) -> Iterator[int]:
    from videoxl.media.choice import FrameChoice
    from videoxl.media.pixels import VideoXLImageProcessor
    from videoxl.media.stream import open_video

    options = {"sampling": "keyframes"} if name == "keyframes" else {}
    more = {"workers": workers} if workers and name != "before" else {}
    if name in ("nvdec", "auto"):
        import torch

        torch.zeros(1, device="cuda")  # a model is there already
        more["backend"] = name
    yield 0
    choice = FrameChoice(num_frames=frames, **options)
    with open_video(video, VideoXLImageProcessor(), choice, timeout=120, **more) as stream:
        for chunk in stream:
            yield len(chunk.frames)


def _peer(name: str, video: str, frames: int, _workers: int | None) -> Iterator[int]:
    if name == "decord":
        from decord import VideoReader, cpu

        yield 0
        reader = VideoReader(video, ctx=cpu(0), num_threads=0)
        yield len(reader.get_batch(np.linspace(0, len(reader) - 1, frames, dtype=int).tolist()).asnumpy())
    elif name.startswith("torchcodec"):
        from torchcodec.decoders import VideoDecoder

        yield 0
        mode = "approximate" if name.endswith("approximate") else "exact"
        decoder = VideoDecoder(video, seek_mode=mode, num_ffmpeg_threads=0)
        for number in np.linspace(0, len(decoder) - 1, frames, dtype=int).tolist():
            decoder[number]
            yield 1
    else:
        import av

        yield 0
        with av.open(video) as container:
            container.streams.video[0].thread_type = "AUTO"
            total = container.streams.video[0].frames
            wanted = set(np.linspace(0, total - 1, frames, dtype=int).tolist())
            for number, frame in enumerate(container.decode(video=0)):
                if number in wanted:
                    frame.to_ndarray(format="rgb24")
                    yield 1


class Peak:
    """Watches the memory of this process and its children, in proportional shares.

    Attributes:
        mib: the largest sum so far in MiB, minus the sum at the start.
    """

    def __init__(self):
        self.mib = 0.0

    def start(self) -> None:
        self._before = self._now()
        threading.Thread(target=self._watch, daemon=True).start()

    def look(self) -> None:
        self.mib = max(self.mib, self._now() - self._before)

    def _watch(self) -> None:
        while True:
            self.look()
            time.sleep(0.1)

    def _now(self) -> float:
        total = 0
        for process in (psutil.Process(), *psutil.Process().children()):
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):  # it has just ended
                total += process.memory_full_info().pss
        return total / 2**20


def made(seconds: int, size: tuple[int, int] = SIZE, codec: str = "libx264", scenes: int = 120, gop: int = 250) -> Path:
    """A file of this length in the temporary folder, kept there: a few scenes, over and over."""
    kind = f"{codec}-{seconds}s-{size[0]}x{size[1]}-{scenes}s-{gop}"
    path = Path(tempfile.gettempdir()) / f"videoxl-benchmark-{kind}.mp4"
    if not path.is_file():
        draft, part = path.with_suffix(".part.mp4"), path.with_suffix(".scenes.mp4")
        scenes = min(seconds, scenes)
        encode(part, scenes, size, codec, gop)
        repeat(part, draft, seconds, scenes)
        part.unlink()
        draft.replace(path)
    return path


def encode(path: Path, seconds: int, size: tuple[int, int], codec: str, gop: int) -> None:
    """Encode moving gradients, blocks and grain with the encoder's default settings."""
    import av
    from tqdm import tqdm

    rng = np.random.default_rng(0)
    width, height = size
    grain = rng.integers(0, 12, (8, height, width, 1), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=FPS)
        stream.gop_size = gop
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


def repeat(source: Path, target: Path, seconds: int, scenes: int) -> None:
    """Repeat the packets of `source` up to `seconds`; each repetition starts with a keyframe."""
    import av

    with av.open(str(target), "w") as output:
        stream = None
        for start in range(0, seconds, scenes):
            with av.open(str(source)) as container:
                video = container.streams.video[0]
                stream = stream or output.add_stream_from_template(video, opaque=True)
                shift, end = round(start / video.time_base), round((seconds - start) / video.time_base)
                for packet in container.demux(video):
                    if packet.dts is None or packet.pts >= end:
                        continue
                    packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                    packet.stream = stream
                    output.mux(packet)


if __name__ == "__main__":
    sys.exit(main())
