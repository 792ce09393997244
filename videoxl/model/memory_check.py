"""Whether a stored memory agrees with itself and with a model, before anything is built from it."""

from __future__ import annotations

from videoxl.cache.memory_file import MemoryState
from videoxl.errors import MemoryFileError
from videoxl.model.runner import SpanReader


def check_state(model, state: MemoryState, reader: SpanReader) -> None:
    """Raise `MemoryFileError` unless counts, shapes and dtypes are those of the plan.

    Args:
        reader: with the windows that the plan gives for as many as the state names.
    """
    config, windows = model.config, reader.windows
    dtype = model.model.embed_tokens.weight.dtype
    _same("beacon_window", state.window, config.beacon_window)
    _same("ratios of its windows", state.window_ratios, [window.ratio for window in windows])
    if any(token >= config.vocab_size for token in state.prefix_ids):
        raise MemoryFileError(f"its prefix has the token {max(state.prefix_ids)}; the vocabulary {config.vocab_size}")
    kept = sum(reader.compressor.num_kept(window) for window in windows)
    positions = len(state.prefix_ids) + kept
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    for index, pair in enumerate(state.layers):
        if pair is None:
            _same(f"positions in layer {index}", 0, positions)
            continue
        for part, tensor in zip(("keys", "values"), pair):
            shape = [config.num_key_value_heads, positions, head]
            _same(f"shape of layer {index}'s {part}", list(tensor.shape), shape)
            _same(f"dtype of layer {index}'s {part}", tensor.dtype, dtype)
    pending = 0 if state.pending is None else len(state.pending)
    if state.pending is not None:
        _same("shape of pending tokens", list(state.pending.shape), [pending, config.hidden_size])
        _same("dtype of pending tokens", state.pending.dtype, dtype)
        if not 0 < pending < state.window:
            raise MemoryFileError(f"it has {pending} pending tokens; a window of {state.window} would have been read")
    tokens, frames = reader.planner.position + pending, len(state.timestamps)
    if tokens % frames if frames else tokens:
        raise MemoryFileError(f"it has {tokens} visual tokens of {frames} frames")
    _same("shape of beacon_spans", list(state.beacon_spans.shape), [kept, 2])


def _same(what: str, found, expected) -> None:
    if found != expected:
        raise MemoryFileError(f"its {what}: {_brief(found)}, expected {_brief(expected)}")


def _brief(value) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
