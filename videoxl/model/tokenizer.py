"""A checkpoint's tokenizer: loaded without its code, and checked to speak the model's vocabulary."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoTokenizer

from videoxl.errors import CheckpointError, one_line

_TURNS = ("<|im_start|>", "<|im_end|>")
_SENTENCE = "Which cards, 2 or 3?\nDéjà vu: 世界 🎬"
_LARGE, _COVERED = 10_000, 0.9  # a vocabulary of at least this many rows has a token for most of them


def load_tokenizer(source: str | Path, **options):
    """As `AutoTokenizer.from_pretrained`, but code beside a tokenizer is never run, nor asked about.

    A folder's tokenizer is not looked up on the hub. Raises `CheckpointError`.
    """
    try:
        return AutoTokenizer.from_pretrained(
            source, trust_remote_code=False, local_files_only=Path(source).is_dir(), **options
        )
    except Exception as error:  # the tokenizers library raises bare ones
        raise CheckpointError(f"cannot load {source}: its tokenizer: {one_line(error)}") from error


def check_tokenizer(tokenizer, source: str | Path, vocab_size: int) -> None:
    """Raise `CheckpointError` unless a tokenizer has the chat tokens, reads any text and fits the vocabulary."""
    number = len(tokenizer)
    if number > vocab_size:
        raise CheckpointError(f"the tokenizer of {source} has {number:,} tokens; the model knows {vocab_size:,}")
    known = tokenizer.get_vocab()
    lacking = [token for token in _TURNS if token not in known]
    if lacking:
        raise CheckpointError(f"the tokenizer of {source} lacks {' and '.join(lacking)}, which frame every turn")
    highest = max(known.values(), default=-1)
    if highest >= vocab_size:
        raise CheckpointError(f"the tokenizer of {source} has the id {highest:,}; the model knows {vocab_size:,}")
    said = tokenizer.decode(tokenizer(_SENTENCE, add_special_tokens=False).input_ids)
    is_small = vocab_size >= _LARGE and number < _COVERED * vocab_size
    if said != _SENTENCE or is_small:
        raise CheckpointError(
            f"the tokenizer of {source} has {number:,} tokens for a vocabulary of {vocab_size:,} and "
            f"{'reads too little' if is_small else f'gives {said[:40]!r} for a sentence'}: is tokenizer.json missing?"
        )
