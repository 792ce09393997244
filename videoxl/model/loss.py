"""The loss of a batch of prompts, with gradients through the cache (docs/explanation/training.md).

All windows of a video, or as many as `TRAINED_AT_ONCE` allows, go through a layer together (`windows_step`). This
keeps the GPU busy, and wrappers that gather a layer's weights do so once for all windows.

Several processes train one model, each on a different prompt: more windows, no video at all. Data-parallel wrappers
need every process to run the same modules in the same order, or they wait forever. So before a batch is
read the processes synchronise how often each part runs, and those with less to do add dummy passes whose loss counts
zero. The order is the same everywhere: vision, text, windows, text, head.

Shape letters: B batch, L tokens of a prompt, t tokens of a step, H hidden size, V vocabulary, N labelled tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from videoxl.cache.gradient import GradientCache
from videoxl.compression.base import Compressor, get_compressor
from videoxl.compression.plan import RatioChooser, Window, group_windows, plan_span
from videoxl.constants import IGNORE_INDEX
from videoxl.errors import BatchError
from videoxl.model.configuration import VideoXLConfig
from videoxl.model.decoder.decoder import VideoXLModel
from videoxl.model.prompt import Prompt, Rows, shifted_labels
from videoxl.model.runner import group_limit, warn_of_unsummarised
from videoxl.model.visual import VisualSpan, encode_frames, iter_features
from videoxl.utils.transfer import send

LOGITS_AT_ONCE = 1024 * 152_064  # computed for the loss: 0.6 GB in fp32, 1024 rows of Qwen2's vocabulary
TRAINED_AT_ONCE = 24_576 * 18_944  # MLP activations in one layer: 17 windows of a 7B model, 0.9 GB in 16 bits

LabelHook = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Logits [n, V] float32 and labels [n] int64 of labelled rows -> the pair that cross entropy is computed from.

For data sources whose labels encode more than an id; rows labelled `IGNORE_INDEX` never reach it.
"""


@dataclass(frozen=True)
class PassCounts:
    """How often the parts of a model run for one batch: tower and projector, decoder, head."""

    vision: int
    decoder: int
    head: int

    def maximum(self, other: PassCounts) -> PassCounts:
        return PassCounts(*(max(a, b) for a, b in zip(self.as_tuple(), other.as_tuple())))

    def as_tuple(self) -> tuple[int, int, int]:
        return self.vision, self.decoder, self.head


Sync = Callable[[PassCounts], PassCounts]
"""Returns the largest counts over all processes; a collective call."""

AT_LEAST = PassCounts(vision=1, decoder=3, head=1)
"""The fewest passes that several processes run, even without visual input, so that every parameter has a gradient."""


@dataclass
class TrainingOptions:
    """What a training step does differently from plain reading.

    Attributes:
        questions_per_video: rows of `input_ids` that share the prefix and visual input of one row of `images`.
        position_gap_max: largest number of RoPE positions left out at random before a window and before text after
            one (0: none), so that positions beyond the length of the training samples are seen.
        gap_seed: seed of those draws.
        bptt_windows: windows at the end of a prompt through which gradients flow; None: all. Windows before them are
            read without gradients, except those that hold evidence.
        evidence: for each visual span, the half-open ranges of visual tokens that the answer needs.
        sync: makes all processes run the same passes; None for a single process.
        label_hook: how a data source converts its logits and labels before the loss; None: labels are ids.
        compressor: how visual tokens become positions, by name; None: by beacons.
    """

    questions_per_video: int = 1
    position_gap_max: int = 0
    gap_seed: int | Sequence[int] = 0
    bptt_windows: int | None = None
    evidence: Sequence[Sequence[tuple[int, int]]] = field(default_factory=list)
    sync: Sync | None = None
    label_hook: LabelHook | None = None
    compressor: str | None = None


def training_loss(
    model: PreTrainedModel,
    prompt: Prompt,
    spans: list[VisualSpan],
    chooser: RatioChooser,
    options: TrainingOptions,
) -> tuple[Tensor, Tensor, GradientCache]:
    """Cross entropy over the labelled tokens of a batch.

    Args:
        model: a `LlavaQwenForCausalLM`.
        prompt: rows with labels; `questions_per_video` consecutive rows have the same texts before the suffix.
        spans: visual input of every `questions_per_video`-th row.

    Returns:
        The summed loss (float32 scalar with gradient), the number of labelled tokens (int64 scalar), and the cache
        after the last text.
    """
    inner = model.model
    times = options.questions_per_video
    shared = _context_rows(prompt, times)
    lengths = [span.length(inner) for span in spans]
    *context_targets, suffix_targets = shifted_labels(prompt, lengths, times)
    count = torch.stack([(part != IGNORE_INDEX).sum() for part in (*context_targets, suffix_targets)]).sum()

    groups = _plan_groups(inner.config, chooser, lengths, len(shared[0]) if shared else 1, options)
    method = get_compressor(options.compressor)
    mine = _count_passes(inner, shared, groups, spans, int(count), method)
    wanted = mine if options.sync is None else options.sync(mine).maximum(AT_LEAST)
    # Vision first, for all spans: then the order is the same in every process.
    features = [torch.cat(list(iter_features(inner, span)), dim=1) for span in spans]
    dummies = _DummyPasses(model)
    if options.sync is not None:
        dummies.encode(wanted.vision - mine.vision)
        for feature in features:
            # Otherwise a visual span that no gradient reaches would not take part in the backward pass.
            dummies.keep(feature[:, :1])
    texts, suffix = _embed_once(inner, shared, prompt.suffixes)
    together = options.sync is not None
    beacon = inner.embed_beacon() if inner.config.enable_beacon or together else None
    if together and torch.is_grad_enabled():
        features = [_in_backward_pass(feature) for feature in features]
        texts, suffix, beacon = (
            [_in_backward_pass(text) for text in texts],
            _in_backward_pass(suffix),
            None if beacon is None else _in_backward_pass(beacon),
        )
    missing = wanted.decoder - mine.decoder
    if not spans and missing:
        dummies.read_text(suffix[:1, :1], beacon)
        missing -= 1

    cache = GradientCache(len(inner.layers), uniform=together, defers_norm=True)
    cache.beacon = beacon
    gaps = _Gaps(options)
    rows = _LabelledRows(together, options.label_hook)
    read = 0
    joined = torch.cat(context_targets, dim=1) if context_targets else suffix_targets[:0]
    for hidden, length, tokens in _read_context(inner, cache, texts, features, groups, gaps, method):
        targets = joined[:, read : read + length]
        rows.add(hidden, targets if tokens is None else targets[:, tokens])
        read += length
    dummies.read_windows(missing, beacon)
    if times > 1:
        cache.repeat(times)
    if spans:
        gaps.leave(cache)
    rows.add(inner.text_step(suffix, cache), suffix_targets)
    loss = rows.sum_loss(inner.norm, model.lm_head, wanted.head, _head_rows(inner.config.vocab_size))
    return loss + dummies.total, count, cache


def _context_rows(prompt: Prompt, times: int) -> list[Tensor]:
    """Texts before each visual span, one row per video; rows that share a video must have the same texts."""
    if len(prompt.suffixes) % times:
        raise BatchError(f"{len(prompt.suffixes)} rows cannot be grouped into {times} questions for each video")
    firsts = [text[::times] for text in prompt.texts]
    if any(not torch.equal(text, first.repeat_interleave(times, dim=0)) for text, first in zip(prompt.texts, firsts)):
        raise BatchError("questions that share a video need the same text before it")
    return firsts


def _embed_once(inner: VideoXLModel, texts: list[Tensor], suffixes: Rows) -> tuple[list[Tensor], Tensor]:
    """Embeddings of all text in one call, whatever the number of segments: `texts` and the padded suffix, [B, t, H]."""
    padded, _ = suffixes.pad(0, "right")
    segments = [*texts, padded]
    ids = torch.cat([segment.flatten() for segment in segments])
    embedded = inner.embed_tokens(send(ids, inner.input_device))
    parts = embedded.split([segment.numel() for segment in segments])
    shaped = [part.view(*segment.shape, embedded.shape[1]) for part, segment in zip(parts, segments)]
    return shaped[:-1], shaped[-1]


def _in_backward_pass(embeds: Tensor) -> Tensor:
    """An input that requires a gradient even if nothing before it learns, so that all steps share one backward pass."""
    return embeds if embeds.requires_grad else embeds.detach().requires_grad_()


def _count_passes(
    inner: VideoXLModel,
    texts: list[Tensor],
    groups: list[list[WindowGroup]],
    spans: list[VisualSpan],
    labelled: int,
    compressor: Compressor,
) -> PassCounts:
    vision = sum(span.num_passes(inner) for span in spans)
    read = sum(compressor.has_rows(group.windows) for span in groups for group in span)
    decoder = sum(text.shape[1] > 0 for text in texts) + read + 1
    return PassCounts(vision, decoder, max(1, math.ceil(labelled / _head_rows(inner.config.vocab_size))))


def _head_rows(vocab_size: int) -> int:
    """Rows of logits to compute at once."""
    return max(1, LOGITS_AT_ONCE // vocab_size)


@dataclass(frozen=True)
class WindowGroup:
    """Windows of one visual span that are read together, all with gradients or all without."""

    windows: tuple[Window, ...]
    flows: bool


def _plan_groups(
    config: VideoXLConfig, chooser: RatioChooser, lengths: list[int], rows: int, options: TrainingOptions
) -> list[list[WindowGroup]]:
    """The windows of each visual span in reading order. A window with ratio 0 is read by itself, like text."""
    limit = group_limit(config, rows, TRAINED_AT_ONCE)
    flowing = _flowing_windows(lengths, config.beacon_window, options)
    planned = []
    for span, length in enumerate(lengths):
        windows = list(plan_span(length, config.beacon_window, chooser))
        groups = []
        by_flow = groupby(zip(windows, [index in flowing[span] for index in range(len(windows))]), itemgetter(1))
        for flows, run in by_flow:
            groups += [WindowGroup(group, flows) for group in group_windows([window for window, _ in run], limit)]
        if windows and windows[-1].remainder_after:
            warn_of_unsummarised(windows[-1].remainder_after, length)
        planned.append(groups)
    return planned


def _flowing_windows(lengths: list[int], window: int, options: TrainingOptions) -> list[set[int]]:
    """For each visual span the windows through which gradients flow."""
    if options.bptt_windows is None:
        return [set(range(math.ceil(length / window))) for length in lengths]
    positions = [(span, index) for span, length in enumerate(lengths) for index in range(math.ceil(length / window))]
    flowing = set(positions[max(0, len(positions) - options.bptt_windows) :])
    for span, ranges in enumerate(options.evidence):
        for start, stop in ranges:
            flowing |= {(span, index) for index in range(start // window, math.ceil(stop / window))}
    return [{index for owner, index in flowing if owner == span} for span in range(len(lengths))]


def _read_context(
    inner: VideoXLModel,
    cache: GradientCache,
    texts: list[Tensor],
    features: list[Tensor],
    groups: list[list[WindowGroup]],
    gaps: _Gaps,
    compressor: Compressor,
) -> Iterator[tuple[Tensor, int, list[int] | None]]:
    """`read_context` for training, on embeddings and visual tokens [B, t, H] of each span, with gaps before windows.

    Yields, step by step, the hidden states [B, T, H] of the rows that were read, the number of expanded tokens they
    stand for, and which of those each row stands for (None: each row for one, in order).
    """
    for index, (text, visual, span_groups) in enumerate(zip(texts, features, groups)):
        if text.shape[1]:
            if index:
                gaps.leave(cache)
            yield inner.text_step(text, cache), text.shape[1], None
        for group in span_groups:
            windows = group.windows
            left_out = [gaps.leave(cache) for _ in windows]
            with nullcontext() if group.flows else torch.no_grad():
                part = visual[:, windows[0].start : windows[-1].stop]
                hidden = inner.windows_step(part, cache, windows, left_out, compressor)
            tokens = compressor.token_of_row(windows) if windows[0].ratio else None
            yield hidden, part.shape[1], tokens


class _Gaps:
    """Random gaps in positions, the same for all layers and rows of a batch."""

    def __init__(self, options: TrainingOptions):
        self._largest = options.position_gap_max
        self._rng = np.random.default_rng(options.gap_seed)

    def leave(self, cache: GradientCache) -> int:
        """Leave some positions out now; returns the number left out so far."""
        if self._largest:
            cache.position_gap += int(self._rng.integers(self._largest + 1))
        return cache.position_gap


class _LabelledRows:
    """Collects the hidden states of labelled tokens; most of a long video has none.

    With `keep_all`, steps without labels stay connected to the loss, so that they take part in the backward pass.
    """

    def __init__(self, keep_all: bool, label_hook: LabelHook | None):
        self._keep_all = keep_all
        self._label_hook = label_hook
        self._rows: list[Tensor] = []
        self._wanted: list[Tensor] = []

    def add(self, hidden: Tensor, targets: Tensor) -> None:
        """hidden [B, t, H] before the final norm, targets [B, t] already shifted, on the CPU."""
        positions = (targets != IGNORE_INDEX).flatten().nonzero()[:, 0]  # on the CPU, so no wait for a GPU
        if not (self._keep_all or len(positions)):
            return
        self._rows.append(hidden.flatten(0, 1).index_select(0, send(positions, hidden.device)))
        self._wanted.append(targets.flatten()[positions])

    def sum_loss(self, norm: torch.nn.Module, head: torch.nn.Module, passes: int, at_once: int) -> Tensor:
        """Cross entropy summed over all rows, in `passes` passes of the head with up to `at_once` rows each."""
        device = self._rows[-1].device
        rows = norm(torch.cat([part.to(device) for part in self._rows]))
        wanted = send(torch.cat(self._wanted), device)
        loss = rows.new_zeros((), dtype=torch.float32)
        for index in range(passes):
            part = rows[index * at_once : (index + 1) * at_once]
            if len(part):
                goal = wanted[index * at_once : (index + 1) * at_once]
                loss = loss + self._cross_entropy(head(part).float(), goal)
            else:
                loss = loss + 0.0 * head(rows.new_zeros(1, rows.shape[1])).float().sum()
        return loss + 0.0 * rows.float().sum()

    def _cross_entropy(self, logits: Tensor, wanted: Tensor) -> Tensor:
        if self._label_hook is not None:
            logits, wanted = self._label_hook(logits, wanted)
        return F.cross_entropy(logits, wanted, reduction="sum")


class _DummyPasses:
    """Dummy passes, kept in the autograd graph with weight zero.

    Attributes:
        total: zero, connected to every dummy pass.
    """

    def __init__(self, model: PreTrainedModel):
        self._inner = model.model
        self._cache = GradientCache(len(model.model.layers), uniform=True, defers_norm=True)
        self.total: Tensor | float = 0.0

    def keep(self, output: Tensor) -> None:
        self.total = self.total + 0.0 * output.float().sum()

    def encode(self, passes: int) -> None:
        tower = self._inner.vision_tower
        for _ in range(passes):
            pixels = torch.zeros(1, 3, tower.image_size, tower.image_size, device=tower.device)
            self.keep(encode_frames(self._inner, pixels))

    def read_text(self, embeds: Tensor, beacon: Tensor | None) -> None:
        self._cache.beacon = beacon
        self.keep(self._inner.text_step(embeds, self._cache))

    def read_windows(self, passes: int, beacon: Tensor | None) -> None:
        self._cache.beacon = beacon
        config, weight = self._inner.config, next(self._inner.norm.parameters())
        ratio = max(config.active_ratios)
        tokens = torch.zeros(1, ratio or 1, config.hidden_size, dtype=weight.dtype, device=weight.device)
        tokens = _in_backward_pass(tokens)
        for _ in range(passes):
            self.keep(self._inner.windows_step(tokens, self._cache, [Window(0, tokens.shape[1], ratio, 0)]))
        # Keep the unread keys and values, too: DeepSpeed counts the outputs of a module that gradients reach.
        for layer in self._cache.layers:
            for key, value in layer.kv_chunks[-1:]:
                self.keep(key)
                self.keep(value)
