"""Write the synthetic world as files: LLaVA-style records with H.264 videos and PNG pictures.

python -m videoxl.synth.files FOLDER --videos 100 --pictures 100 --frames 64
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from videoxl.errors import DataError
from videoxl.synth.cards import World
from videoxl.synth.drawing import draw
from videoxl.synth.questions import Question, ask, sample_cards
from videoxl.synth.scenes import families
from videoxl.synth.story import Story, tell
from videoxl.utils.cli_errors import one_line_errors
from videoxl.utils.files import whole_file

RECORDS = "records.json"
_AT_ONCE = 64  # frames in memory while a video is written


def write_video(path: Path, numbers: np.ndarray, side: int, fps: int = 1, crf: int = 20) -> None:
    """Write frames [F, WIDTH] as an H.264 file of `side` x `side` pixels, atomically."""
    import av

    exact = {"fflags": "+bitexact"}  # without the muxer's date the same frames give the same file
    with whole_file(path) as draft, av.open(str(draft), "w", format="mp4", container_options=exact) as container:
        # With x264's macroblock tree, bytes differ from run to run on AVX-512 processors, even with one thread.
        options = {"crf": str(crf), "preset": "veryfast", "threads": "1", "x264-params": "mbtree=0"}
        stream = container.add_stream("libx264", rate=fps, options=options)
        stream.width, stream.height, stream.pix_fmt = side, side, "yuv420p"
        for start in range(0, len(numbers), _AT_ONCE):
            for frame in draw(torch.from_numpy(numbers[start : start + _AT_ONCE]), side).numpy():
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def write_picture(path: Path, numbers: np.ndarray, side: int) -> None:
    """One frame [1, WIDTH] as PNG."""
    Image.fromarray(draw(torch.from_numpy(numbers), side)[0].numpy()).save(path)


def write_dataset(
    folder: Path,
    videos: int,
    pictures: int,
    frames: int,
    seed: int,
    held_out: bool = False,
    questions: int = 4,
    side: int = 336,
    progress: bool = False,
) -> Path:
    """Videos, pictures and records for the training program.

    Args:
        frames: frames per video, one per second.
        held_out: use the test world.

    Returns:
        Path of the records. Existing files are kept, so that an interrupted call can be resumed.

    Raises:
        DataError: the folder holds another data set or other files, or a number is too small.
    """
    least = {"frames": (frames, 1), "questions": (questions, 1), "videos": (videos, 0), "pictures": (pictures, 0)}
    least["videos and pictures"] = (videos + pictures, 1)
    for name, (value, bound) in least.items():
        if value < bound:
            raise DataError(f"{name} is {value}; it must be at least {bound}")
    request = {"videos": videos, "pictures": pictures, "frames": frames, "seed": seed, "held_out": held_out}
    request |= {"questions": questions, "side": side}
    folder.mkdir(parents=True, exist_ok=True)
    asked = folder / "request.json"
    if asked.is_file() and json.loads(asked.read_text()) != request:
        raise DataError(f"{folder} holds another data set ({asked.read_text().strip()}); name another folder")
    if not asked.is_file() and any(folder.iterdir()):
        raise DataError(f"{folder} is not empty and holds no data set of this program; name another folder")
    asked.write_text(json.dumps(request) + "\n")
    records = []
    for number in tqdm(range(videos + pictures), desc="writing", unit="file", disable=not progress):
        rng = np.random.default_rng([seed, number, held_out])
        world: World = "test" if held_out else "training"
        is_video = number < videos
        length = frames if is_video else 1
        cards = sample_cards(rng, 4 if length > 8 else 1, world)
        story = tell(rng, length, cards, from_families=families(held_out=True) if held_out else None)
        name = f"video_{number:05d}.mp4" if is_video else f"picture_{number:05d}.png"
        if not (folder / name).is_file():
            (write_video if is_video else write_picture)(folder / name, story.numbers, side)
        asked_here = ask(rng, cards, questions, world)
        records.append(make_record(name, story, asked_here, is_video))
    path = folder / RECORDS
    path.write_text(json.dumps(records, indent=1) + "\n")
    return path


def make_record(name: str, story: Story, questions: list[Question], is_video: bool) -> dict:
    """One LLaVA-style record: each question a conversation of its own about the same file."""
    conversations = [
        [{"from": "human", "value": f"<image>\n{question.text}"}, {"from": "gpt", "value": question.answer}]
        for question in questions
    ]
    record = {"id": name.partition(".")[0], ("video" if is_video else "image"): name, "conversations": conversations}
    if is_video:
        record["evidence"] = [[float(first), float(stop)] for first, stop in story.shown]
    return record


@one_line_errors
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m videoxl.synth.files", description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="new folder, or one that an interrupted run left")
    parser.add_argument("--videos", type=int, default=100)
    parser.add_argument("--pictures", type=int, default=0)
    parser.add_argument("--frames", type=int, default=64, help="frames per video, one per second")
    parser.add_argument("--questions", type=int, default=4, help="questions about each file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--test-world", action="store_true", help="use combinations and scenes unseen in training")
    given = parser.parse_args(arguments)
    path = write_dataset(
        given.folder, given.videos, given.pictures, given.frames, given.seed, given.test_world, given.questions,
        progress=True,
    )  # fmt: skip
    print(f"wrote {path}")


if __name__ == "__main__":
    sys.exit(main())
