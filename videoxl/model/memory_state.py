"""A memory's content as plain values, and back: what is stored is checked against itself and a model first."""

from __future__ import annotations

import numpy as np
import torch

from videoxl.cache.memory_file import MemoryState
from videoxl.cache.summary import SummaryCache
from videoxl.compression.base import get_compressor
from videoxl.compression.plan import RatioChooser
from videoxl.errors import MemoryFileError
from videoxl.model.modality import visual_length
from videoxl.model.runner import SpanReader


def facts_about(memory) -> dict:
    """See `VideoMemory.info`."""
    known = [time for time in memory.timestamps if time == time]
    return {
        "frames": memory.num_frames,
        "visual_tokens": memory.num_visual_tokens,
        "pending_tokens": memory.num_pending,
        "cached_positions": memory.cache.get_query_offset(),
        "compressor": memory.reader.compressor.name,
        "window_ratios": sorted(set(memory.cache.window_ratios)),
        "windows": len(memory.cache.window_ratios),
        "bytes": memory.cache.num_bytes,
        "first_second": known[0] if known else None,
        "last_second": known[-1] if known else None,
        "prefix_tokens": len(memory.prefix_ids),
        **{f"source_{key}": value for key, value in memory.source.items()},
        **{f"model_{key}": value for key, value in memory.fingerprint.items()},
    }


def spans_of_beacons(memory) -> np.ndarray:
    """See `VideoMemory.beacon_spans`."""
    tokens_a_frame = memory.num_visual_tokens // max(memory.num_frames, 1)
    times = np.asarray(memory.timestamps, dtype=np.float64)
    spans = [span for window in memory.reader.windows for span in memory.reader.compressor.spans(window)]
    if not spans:
        return np.zeros((0, 2))
    first, stop = np.asarray(spans).T
    return np.stack([times[first // tokens_a_frame], times[(stop - 1) // tokens_a_frame]], axis=1)


def state_of(memory) -> MemoryState:
    """See `VideoMemory.state`."""
    reader, chooser = memory.reader, memory.reader.planner.chooser
    return MemoryState(
        prefix_ids=memory.prefix_ids,
        ratios=list(chooser.ratios),
        ratio_mix=chooser.mix,
        window_ratios=list(memory.cache.window_ratios),
        window=reader.planner.window,
        compressor=reader.compressor.name,
        source=memory.source,
        fingerprint=memory.fingerprint,
        timestamps=memory.timestamps,
        indices=memory.indices,
        beacon_spans=memory.beacon_spans(),
        layers=[layer.first_row() for layer in memory.cache.layers],
        pending=None if reader.pending is None else reader.pending[0],
    )


def restore(model, state: MemoryState) -> tuple[SummaryCache, SpanReader]:
    """Cache and reader of a stored memory; removes the layers from the state. Raises as `VideoMemory.from_state`."""
    cache = SummaryCache(len(state.layers))
    limit = model.config.max_position_embeddings
    chooser = RatioChooser(state.ratios, state.ratio_mix, state.window, limit)
    reader = SpanReader(model.model, cache, chooser, get_compressor(state.compressor))
    # A memory holds only full windows, so planning as many again restores the plan.
    reader.windows = [reader.planner.next_window(state.window) for _ in state.window_ratios]
    check_state(model, state, reader)
    for index, layer in enumerate(cache.layers):
        pair, state.layers[index] = state.layers[index], None  # else all layers would be held twice
        if pair is not None:
            layer.growing.adopt(*(part.unsqueeze(0) for part in pair))
    cache.restore(len(state.prefix_ids) + reader.planner.position, state.window_ratios)
    if state.pending is not None:
        device = model.model.embed_tokens.weight.device
        reader.pending = state.pending.to(device, copy=True).unsqueeze(0)  # no view of the file
    return cache, reader


def layer_devices(model) -> list[torch.device]:
    """Where each layer keeps its keys and values."""
    return [layer.self_attn.q_proj.weight.device for layer in model.model.layers]


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
    fits = not (tokens % frames if frames else tokens)
    if any(index >= 0 for index in state.indices):  # frames of a file; bare tokens may be any number a frame
        patches = model.model.tower.num_patches
        fits = tokens == visual_length(frames, patches, "video", config)
    if not fits:
        raise MemoryFileError(f"it has {tokens} visual tokens of {frames} frames")
    _same("shape of beacon_spans", list(state.beacon_spans.shape), [kept, 2])


def _same(what: str, found, expected) -> None:
    if found != expected:
        raise MemoryFileError(f"its {what}: {_brief(found)}, expected {_brief(expected)}")


def _brief(value) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def brief(ids: list[int]) -> str:
    """Ids as an error shows them."""
    return str(ids) if len(ids) <= 24 else f"[{str(ids[:12])[1:-1]}, ... {len(ids)} ids]"
