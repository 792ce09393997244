"""A model of the full geometry with random weights, and a small byte-level tokenizer in Qwen2's format.

At a hidden size of 256 Qwen2's own vocabulary would be most of the model; here each word of the world is one token.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import GenerationConfig

from videoxl.chat import SELECT_MESSAGE, SYSTEM_MESSAGE
from videoxl.media.pixels import VideoXLImageProcessor
from videoxl.model.configuration import VideoXLConfig
from videoxl.model.modeling import LlavaQwenForCausalLM
from videoxl.model.tokenizer import load_tokenizer
from videoxl.synth.questions import ask, sample_cards
from videoxl.synth.story import tell

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")  # in the order of Qwen2's tokenizer


@dataclass(frozen=True)
class Shape:
    """Sizes of a model. `image_size` of 336 gives 144 tokens a frame and windows of 1440, as published."""

    image_size: int = 336
    vision_width: int = 128
    vision_layers: int = 5  # the last one is not run: hidden state -2 is taken
    vision_heads: int = 4
    hidden_size: int = 256
    layers: int = 6
    heads: int = 4
    kv_heads: int = 2
    intermediate_size: int = 704
    vocab_size: int = 640
    initializer_range: float = 0.05  # near hidden_size ** -0.5, so that attention is not flat for long

    @property
    def tokens_a_frame(self) -> int:
        return (self.image_size // 28) ** 2


SHAPES_BY_SIZE = {
    "gpu": Shape(),
    "cpu": Shape(
        image_size=112,
        vision_width=48,
        vision_layers=3,
        vision_heads=3,
        hidden_size=64,
        layers=2,
        intermediate_size=160,
    ),
}


def write_base(folder: Path, shape: Shape, seed: int) -> None:
    """Tokenizer, processor and random weights."""
    folder.mkdir(parents=True, exist_ok=True)
    write_tokenizer(folder, shape.vocab_size)
    VideoXLImageProcessor(shape.image_size).save_pretrained(folder)
    tokenizer = load_tokenizer(folder)
    config = VideoXLConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.hidden_size // shape.heads,
        initializer_range=shape.initializer_range,
        max_position_embeddings=262144,
        rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
        bos_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        mm_vision_tower="tiny-clip",
        mm_hidden_size=shape.vision_width,
        mm_vision_config={
            "hidden_size": shape.vision_width,
            "intermediate_size": 4 * shape.vision_width,
            "num_hidden_layers": shape.vision_layers,
            "num_attention_heads": shape.vision_heads,
            "image_size": shape.image_size,
            "patch_size": 14,
        },
        image_aspect_ratio="square",
        beacon_window=10 * shape.tokens_a_frame,
        beacon_stride=10 * shape.tokens_a_frame,
        beacon_ratio=[8],
    )
    torch.manual_seed(seed)
    model = LlavaQwenForCausalLM(config)
    model.copy_missing_beacon_weights({name for name, _ in model.named_parameters() if "beacon_" in name})
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    model.save_pretrained(folder)


def write_tokenizer(folder: Path, vocab_size: int) -> None:
    """Byte-pair merges learnt from the world's own texts; the last id of the model's vocabulary stays unused."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(SPECIAL) - 1,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(2000), trainer)
    tokenizer.model.save(str(folder))
    write_tokenizer_config(folder, tokenizer.get_vocab_size(), 262144)


def write_tokenizer_config(folder: Path, size: int, max_length: int) -> None:
    """Qwen2's chat tokens after a vocabulary of `size`."""
    special = {token: size + place for place, token in enumerate(SPECIAL)}
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    config = {
        "tokenizer_class": "Qwen2Tokenizer",
        "added_tokens_decoder": {str(i): {"content": token, **flags} for token, i in special.items()},
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "clean_up_tokenization_spaces": False,
        "errors": "replace",
        "model_max_length": max_length,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def _texts(number: int) -> list[str]:
    rng = np.random.default_rng(0)
    texts = [f"system\n{message}\nuser\nassistant\n" for message in (SYSTEM_MESSAGE, SELECT_MESSAGE)] * (number // 8)
    for _ in range(number):
        cards = sample_cards(rng, 4)
        texts.append(tell(rng, 8, cards).in_words())
        texts += [f"\n{question.text}\n{question.answer}" for question in ask(rng, cards, 3)]
    return texts
