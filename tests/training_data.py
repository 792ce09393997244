"""A training set of generated pictures and videos, and a plain Qwen2 base with a CLIP tower beside it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPVisionConfig, CLIPVisionModel, Qwen2Config, Qwen2ForCausalLM

ROOT = Path(__file__).resolve().parent.parent
TINY = ROOT / "assets" / "tiny-random"
COLOURS = {"red": (220, 40, 40), "green": (40, 200, 60), "blue": (40, 60, 220)}


def picture(path: Path, colour: str, size: tuple[int, int] = (360, 340)) -> None:
    noise = np.random.default_rng(len(colour)).integers(0, 30, (size[1], size[0], 3))
    Image.fromarray((noise + np.array(COLOURS[colour])).clip(0, 255).astype(np.uint8)).save(path)


def fit(task, pictures, classes, steps: int, learning_rate: float):
    """Train a task on classes on one batch; returns the loss before and the output after it."""
    optimizer = torch.optim.Adam([p for p in task.parameters() if p.requires_grad], learning_rate)
    first = float(task(pictures, classes).loss.detach())
    for _ in range(steps):
        loss = task(pictures, classes).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return first, task(pictures, classes)


def turns(question: str, answer: str) -> list[dict[str, str]]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


def make_data(folder: Path) -> Path:
    """A folder with `mixed.json` (every kind of record) and `captions.json` (for stage one), pictures and videos."""
    from videos import write_video  # needs PyAV, which not every machine that tests the model has

    for colour in COLOURS:
        picture(folder / f"{colour}.png", colour)
    picture(folder / "wide.png", "green", (700, 350))
    for name, seconds in (("short", 4), ("long", 12)):
        write_video(folder / f"{name}.mp4", seconds * 5, fps=5)
    mixed = []
    for index, colour in enumerate(COLOURS):
        mixed.append(
            {"id": f"p{index}", "image": f"{colour}.png", "conversations": turns("<image>\nWhich colour?", colour)}
        )
    mixed += [
        {"id": "wide", "image": "wide.png", "conversations": turns("<image>\nWhich colour?", "green")},
        {
            "id": "two",
            "image": ["red.png", "blue.png"],
            "conversations": turns("<image><image>\nWhich colours?", "red and blue"),
        },
        {"id": "v0", "video": "short.mp4", "conversations": turns("<image>\nWhat is written?", "Numbers.")},
        {"id": "v1", "video": "long.mp4", "conversations": turns("<image>\nWhat is it?", "Numbers.")},
        {
            "id": "later",
            "image": ["red.png", "green.png"],
            "conversations": turns("<image>\nWhich colour?", "red") + turns("<image>\nAnd this?", "green"),
        },
        {"id": "t0", "conversations": turns("Say yes.", "yes")},
        {"id": "t1", "conversations": turns("Say no.", "no")},
    ]
    (folder / "mixed.json").write_text(json.dumps(mixed))
    captions = [
        {"id": f"c{i}", "image": f"{colour}.png", "conversations": turns("<image>\nDescribe.", f"a {colour} picture")}
        for i, colour in enumerate(COLOURS)
    ]
    captions.append({"id": "cv", "video": "short.mp4", "conversations": turns("<image>\nDescribe.", "numbers")})
    (folder / "captions.json").write_text(json.dumps(captions))
    return folder


def make_base(folder: Path) -> tuple[Path, Path]:
    """(a plain Qwen2 model with the bundled model's weights and tokenizer, the bundled model's tower)."""
    stored = json.loads((TINY / "config.json").read_text())
    weights = load_file(TINY / "model.safetensors")
    keys = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
            "vocab_size", "max_position_embeddings", "rms_norm_eps", "rope_parameters", "tie_word_embeddings",
            "bos_token_id", "eos_token_id")  # fmt: skip
    qwen = Qwen2ForCausalLM(Qwen2Config(**{key: stored[key] for key in keys}))
    plain = {name: value.float() for name, value in weights.items() if name in qwen.state_dict()}
    qwen.load_state_dict(plain)
    qwen.save_pretrained(folder / "qwen2")
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"):
        if (TINY / name).is_file():
            shutil.copy(TINY / name, folder / "qwen2" / name)
    tower = CLIPVisionModel(CLIPVisionConfig(**stored["mm_vision_config"]))
    prefix = "model.vision_tower.vision_tower.vision_model."
    tower.load_state_dict({n.removeprefix(prefix): w.float() for n, w in weights.items() if n.startswith(prefix)})
    tower.save_pretrained(folder / "clip")
    shutil.copy(TINY / "preprocessor_config.json", folder / "clip")
    return folder / "qwen2", folder / "clip"


def run_training(*arguments, env: dict[str, str] | None = None, timeout: int = 600) -> subprocess.CompletedProcess:
    """`python -m videoxl.train` on the CPU, in a process of its own."""
    command = [sys.executable, "-m", "videoxl.train", "--use_cpu", "True", *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"} | (env or {})
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=timeout, env=environment)


def losses(folder: Path) -> list[float]:
    """Training losses by step."""
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")
