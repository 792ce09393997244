"""What tests share: the recorded outputs of the published system, the bundled model and video, small helpers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import interpreted  # noqa: F401  # first: see there
import numpy as np
import pytest
import torch
from tiny_runs import run_tiny
from training_data import make_base, make_data

from videoxl.chat import join_prompt_ids, video_prompt_ids
from videoxl.constants import IMAGE_TOKEN_INDEX
from videoxl.model.loading import load_pretrained_model
from videoxl.synth.base import SHAPES_BY_SIZE, write_base

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = Path(os.environ.get("VIDEOXL_GOLDEN", ROOT.parent / "shared" / "golden"))
TINY = ROOT / "assets" / "tiny-random"
BUNDLE = ROOT / "assets" / "videoxl-tiny"
SAMPLE = ROOT / "assets" / "sample.mp4"

# With several test processes each has one core.
torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of recorded outputs; not part of the repository: without it a user's run skips and CI fails."""
    if not (GOLDEN / "cases.json").is_file():
        message = f"recorded outputs of the published system are not at {GOLDEN} (set VIDEOXL_GOLDEN)"
        pytest.fail(message) if os.environ.get("CI") == "true" else pytest.skip(message)
    return GOLDEN


def golden_names(file: str) -> list[str]:
    """Case names for parametrisation; one placeholder where the record is absent, so that the fixture can speak."""
    path = GOLDEN / file
    return [case["name"] for case in json.loads(path.read_text())] if path.is_file() else ["absent"]


def load_golden_model(golden: Path, **kwargs):
    """The recorded checkpoint, float32 on the CPU."""
    return load_pretrained_model(golden / "tiny", None, "llava_qwen", device_map="cpu", **kwargs)


@pytest.fixture
def tiny():
    """(tokenizer, model, image processor) of the bundled random checkpoint, float32; the model is the test's own."""
    tokenizer, model, processor, _ = load_pretrained_model(TINY, device_map="cpu")
    return tokenizer, model, processor


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """Pictures, videos and records; see `training_data.make_data`."""
    return make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> tuple[Path, Path]:
    """(a plain Qwen2 model, a CLIP tower): what stage one starts from."""
    return make_base(tmp_path_factory.mktemp("base"))


def random_pixels(frames: int, seed: int = 0) -> torch.Tensor:
    """Pixel values [frames, 3, 336, 336] as the records make them."""
    values = np.random.default_rng(seed).standard_normal((frames, 3, 336, 336)).astype(np.float32)
    return torch.from_numpy(values)


def prompt_for(tokenizer, question: str = "What happens here?") -> tuple[list[int], torch.Tensor]:
    """(prefix ids, prompt [1, L]) of a question about one video."""
    prefix, suffix = video_prompt_ids(tokenizer, question)
    return prefix, torch.tensor([join_prompt_ids(prefix, suffix)])


def text_ids(tokenizer, text: str) -> list[int]:
    return tokenizer(text).input_ids


def with_spans(*pieces) -> torch.Tensor:
    """A prompt [1, L] from lists of ids with a visual span between each two."""
    ids: list[int] = []
    for piece in pieces[:-1]:
        ids += [*piece, IMAGE_TOKEN_INDEX]
    return torch.tensor([[*ids, *pieces[-1]]])


def run_cli(*arguments, **kwargs) -> subprocess.CompletedProcess:
    """The `videoxl` command in a process of its own."""
    command = [sys.executable, "-m", "videoxl.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300, **kwargs)


@pytest.fixture(scope="session")
def small_base(tmp_path_factory) -> Path:
    """A random model of the small size that the synthetic world is tried out with on CPUs."""
    folder = tmp_path_factory.mktemp("small_base")
    write_base(folder, SHAPES_BY_SIZE["cpu"], seed=0)
    return folder


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess]:
    """One whole run of `train_tiny.sh --cpu`: its folder and what it printed."""
    folder = tmp_path_factory.mktemp("run") / "seed0"
    done = run_tiny(folder, "--cpu")
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, done
