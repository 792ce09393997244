"""Make the checkpoint tiny-random: the full geometry (336 pixels, 144 tokens a frame, window 1440), random weights.

    python scripts/make_tiny_random.py assets/tiny-random

It exercises every part of the system in seconds on a CPU. Its answers are noise, and its configuration says so.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from transformers import AutoTokenizer, GenerationConfig

from videoxl import LlavaQwenForCausalLM, VideoXLConfig
from videoxl.media.pixels import VideoXLImageProcessor
from videoxl.synth.base import write_tokenizer_config

VOCAB_SIZE = 320  # 256 bytes and 3 special tokens, rounded up; the last id is the placeholder of visual tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("output", type=Path, help="folder to write: a new or an empty one")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.output.exists() and any(arguments.output.iterdir()):
        sys.exit(f"{arguments.output} is not empty; name a new folder")
    arguments.output.mkdir(parents=True, exist_ok=True)
    write_tokenizer(arguments.output)
    write_model(arguments.output, arguments.seed)
    size = sum(file.stat().st_size for file in arguments.output.iterdir())
    print(f"wrote {arguments.output} ({size / 1024:.0f} KiB)")


def write_tokenizer(folder: Path) -> None:
    """A byte-level tokenizer in Qwen2's format, without merges."""
    alphabet = byte_alphabet()
    (folder / "vocab.json").write_text(json.dumps({char: i for i, char in enumerate(alphabet)}, ensure_ascii=False))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    write_tokenizer_config(folder, len(alphabet), 32768)


def write_model(folder: Path, seed: int) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    config = VideoXLConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=96,
        intermediate_size=192,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=32768,
        rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
        bos_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        mm_vision_tower="tiny-clip",
        mm_hidden_size=64,
        mm_vision_config={
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "image_size": 336,
            "patch_size": 14,
        },
        image_grid_pinpoints=[[336 * a, 336 * b] for a in range(1, 5) for b in range(1, 5) if 2 <= a * b <= 4],
        model_note="this model has random weights: its answers are noise",
    )
    torch.manual_seed(seed)
    model = LlavaQwenForCausalLM(config)
    model.copy_missing_beacon_weights({name for name, _ in model.named_parameters() if "beacon_" in name})
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:  # larger than for training, so that every module affects the output
                parameter.mul_(4.0 if "vision_tower" not in name else 1.5)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    model.to(torch.bfloat16).save_pretrained(folder)
    VideoXLImageProcessor(336).save_pretrained(folder)


def byte_alphabet() -> list[str]:
    """The 256 characters that stand for bytes in GPT-2's and Qwen2's vocabularies, by byte value."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    rest = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) if byte in printable else chr(256 + rest.index(byte)) for byte in range(256)]


if __name__ == "__main__":
    main()
