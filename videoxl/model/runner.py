"""The loop over a prompt: text steps, windows of visual spans, text again.

Nothing here outlives a call except the objects passed in, so one model can read any number of videos concurrently.

Shape letters: B batch, t tokens, H hidden size, F frames or views, S pixels.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from videoxl.cache.summary import SummaryCache
from videoxl.compression.base import Compressor, get_compressor
from videoxl.compression.plan import RatioChooser, SpanPlanner, Window, group_windows
from videoxl.cost.batching import ELEMENTS_AT_ONCE, windows_at_once
from videoxl.errors import NonFiniteError, UnsummarisedTokensWarning
from videoxl.model.configuration import VideoXLConfig
from videoxl.model.decoder.decoder import VideoXLModel
from videoxl.model.prompt import Prompt
from videoxl.model.visual import Progress, VisualSpan, iter_features


def make_chooser(
    config: VideoXLConfig,
    sequence_length: int | None,
    ratio: int | None = None,
    seed: int | Sequence[int] = 42,
    compressor: Compressor | None = None,
) -> RatioChooser:
    """The ratio chooser of one sequence; `ratio` overrides `config.beacon_ratio`, a compressor's own overrides both.

    Raises:
        PlanError: a ratio that the plan or the compressor does not support.
    """
    ratio = ratio if compressor is None else compressor.resolve_ratio(ratio)
    ratios = config.active_ratios if ratio is None else [ratio]
    return RatioChooser(
        ratios, config.beacon_ratio_mix, config.beacon_window, config.max_position_embeddings, sequence_length, seed
    )


def group_limit(config: VideoXLConfig, rows: int, elements: int = ELEMENTS_AT_ONCE) -> int:
    """Windows that go through the layers together, for `rows` rows of a batch; see `windows_at_once`."""
    if config._attn_implementation == "eager":  # keeps a mask and the weights of every window of a layer
        return 1
    return windows_at_once(config.beacon_window, config.intermediate_size, rows, elements)


def warn_of_unsummarised(remainder: int, length: int) -> None:
    """Warn that `remainder` tokens at the end of a visual span of `length` fill no group."""
    warnings.warn(
        f"{remainder} visual token(s) at the end of a visual span of {length} are not summarised: the compression "
        "ratio does not divide the visual span",
        UnsummarisedTokensWarning,
        stacklevel=3,
    )


class SpanReader:
    """Reads one visual span window by window, however its tokens arrive.

    Attributes:
        pending: [B, n, H] visual tokens that do not fill a window yet, n < window.
        windows: the windows read so far.
    """

    def __init__(
        self, model: VideoXLModel, cache: SummaryCache, chooser: RatioChooser, compressor: Compressor | None = None
    ):
        self.model = model
        self.cache = cache
        self.compressor = get_compressor(compressor)
        self.planner = SpanPlanner(model.config.beacon_window, chooser)
        self.pending: Tensor | None = None
        self.windows: list[Window] = []

    def push(self, features: Tensor) -> Iterator[Tensor]:
        """Take visual tokens [B, t, H] and read every window they fill; yields hidden states per group of windows."""
        if self.pending is not None:
            features = torch.cat([self.pending, features], dim=1)
        whole = features.shape[1] - features.shape[1] % self.planner.window
        yield from self._read(features[:, :whole])
        features = features[:, whole:]
        self.pending = features.clone() if features.shape[1] else None

    def close(self) -> Iterator[Tensor]:
        """Read the last, partial window; warn if tokens stay unsummarised."""
        if self.pending is not None:
            yield from self._read(self.pending)
            self.pending = None
        if self.planner.remainder:
            warn_of_unsummarised(self.planner.remainder, self.planner.position)

    def fork(self, cache: SummaryCache) -> SpanReader:
        """A reader that continues from here on another cache, without moving this one."""
        other = copy.copy(self)
        other.cache = cache
        other.planner = self.planner.fork()
        other.windows = list(self.windows)
        return other

    def _read(self, tokens: Tensor) -> Iterator[Tensor]:
        windows, planned = [], 0
        while planned < tokens.shape[1]:
            windows.append(self.planner.next_window(tokens.shape[1] - planned))
            planned += windows[-1].num_tokens
        for group in group_windows(windows, group_limit(self.model.config, len(tokens))):
            self.windows += group
            length = sum(window.num_tokens for window in group)
            yield self.model.windows_step(tokens[:, :length], self.cache, group, compressor=self.compressor)
            tokens = tokens[:, length:]


def read_context(
    model: VideoXLModel,
    prompt: Prompt,
    spans: Iterable[VisualSpan],
    cache: SummaryCache,
    chooser: RatioChooser,
    progress: Progress | None = None,
    compressor: Compressor | None = None,
) -> Iterator[Tensor]:
    """Read everything before the suffix; yields hidden states [B, t, H] of the rows that were read, step by step."""
    for text, span in zip(prompt.texts, spans):
        if text.shape[1]:
            yield model.text_step(model.embed_tokens(text.to(model.input_device)), cache)
        reader = SpanReader(model, cache, chooser, compressor)
        for features in iter_features(model, span, progress):
            yield from reader.push(features)
        yield from reader.close()


def last_hidden(steps: Iterator[Tensor], before: Tensor | None = None) -> Tensor | None:
    """Run steps to their end; returns the hidden state [B, 1, H] of the last token, or `before` if there is none.

    Nothing else is kept, so that only one step's states are in memory at a time.
    """
    for hidden in steps:
        if hidden.shape[1]:  # a window may leave no row at all
            before = hidden[:, -1:].clone()
        del hidden
    return before


def check_finite(hidden: Tensor, cache: SummaryCache) -> None:
    """If `hidden` is not finite, raise `NonFiniteError` that names the first layer with such keys or values."""
    if torch.isfinite(hidden[:, -1:]).all():
        return
    for index, layer in enumerate(cache.layers):
        if not all(torch.isfinite(part).all() for part in layer.stored):
            where = f"the input of decoder layer {index}"
            break
    else:
        where = "the output of the last decoder layer"
    raise NonFiniteError(
        f"NaN or infinity in {where} ({hidden.dtype}). Load the model with torch_dtype=torch.bfloat16 (or float32); "
        "if the error persists, the checkpoint's weights are damaged"
    )
