"""The loop over a prompt: text steps, windows of visual regions, text again. It advances the cache; no layer does.

Nothing here survives a call but the objects handed in, so any number of videos can be in flight on one model.

Shape letters: B batch, t tokens, H hidden size, F frames or views, S pixels.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from videoxl.errors import BatchError, NonFiniteError, PromptError, UnsummarisedTokensWarning
from videoxl.model.cache import SummaryCache
from videoxl.model.configuration import VideoXLConfig
from videoxl.model.decoder import VideoXLModel
from videoxl.model.plan import RatioChooser, RegionPlanner, WindowStep, group_windows
from videoxl.model.pooling import merge_views, pool_video, visual_length
from videoxl.model.prompt import Prompt

FRAMES_PER_CHUNK = {"cpu": 8, "cuda": 40}
"""Frames that go through the vision tower at once. Larger gives nothing: a ViT-L layer is full with 20 frames."""

VIT_L_WIDTH = 1024

ELEMENTS_AT_ONCE = 4 * 1440 * 18_944
"""Of the MLP's middle in one layer: four windows of a 7B model, as many as a chunk of frames fills; 0.2 GB of bf16."""

Progress = Callable[[int], None]
"""Called with the number of frames read since the last call."""


@dataclass
class Region:
    """The pixels of one visual region in every row of a batch.

    Attributes:
        pixels: a row each, [F, 3, S, S]; the same F in every row. Features of the tower [F, P, C] serve as well.
        modality: `video` or `image`.
    """

    pixels: list[Tensor]
    modality: str

    def length(self, model: VideoXLModel) -> int:
        """Visual tokens of the region."""
        return visual_length(len(self.pixels[0]), model.vision_tower.num_patches, self.modality, model.config)

    def num_passes(self, model: VideoXLModel) -> int:
        """Calls of the tower that `iter_features` makes for it."""
        chunk, frames = chunk_frames(model), len(self.pixels[0])
        if self.modality == "image":
            return -(-sum(map(len, self.pixels)) // chunk)
        parts = [min(chunk, frames - start) for start in range(0, frames, chunk)]
        return sum(-(-part * len(self.pixels) // chunk) for part in parts)


def arrange_regions(
    images: Sequence[Tensor] | Tensor,
    modalities: Sequence[str] | None,
    num_rows: int,
    num_regions: int,
    model: VideoXLModel,
) -> list[Region]:
    """Give each placeholder of each row its pixels; `images` is flat, row by row.

    Args:
        images: pixel values [F, 3, S, S] (a video, or the views of a picture) or [3, S, S]; or features that the
            vision tower made of them, [F, P, C].
        modalities: `video` or `image` for each of `images`; one entry serves all; None: `image`.

    Raises:
        PromptError: numbers that do not match, an unknown modality, pixels of another shape.
        BatchError: rows whose regions differ in kind or visual length.
    """
    size = model.vision_tower.image_size
    images = [image.unsqueeze(0) if image.shape == (3, size, size) else image for image in images]
    expected = num_rows * num_regions
    if len(images) != expected:
        raise PromptError(
            f"the prompt has {num_regions} <image> placeholder(s) in each of {num_rows} row(s), so {expected} visual "
            f"input(s) are needed; `images` holds {len(images)}"
        )
    modalities = list(modalities) if modalities is not None else ["image"]
    if len(modalities) == 1:
        modalities = modalities * expected
    if len(modalities) != expected:
        raise PromptError(
            f"`modalities` has {len(modalities)} entries for {expected} visual input(s); give one or each"
        )
    for image, modality in zip(images, modalities):
        if modality not in ("video", "image"):
            raise PromptError(f"modality {modality!r} is not known; use 'video' or 'image'")
        if image.shape[1:] != (3, size, size) and not _are_features(image, model):
            raise PromptError(
                f"pixel values must be [frames, 3, {size}, {size}]; got {list(image.shape)}. "
                "Use image_processor.preprocess or process_images"
            )
        if not len(image):
            raise PromptError("a visual input has no frames; give at least one")
    regions = []
    for index in range(num_regions):
        pixels, kinds = images[index::num_regions], modalities[index::num_regions]
        lengths = [
            visual_length(len(p), model.vision_tower.num_patches, k, model.config) for p, k in zip(pixels, kinds)
        ]
        if len(set(lengths)) > 1 or len(set(kinds)) > 1:
            raise BatchError(
                f"rows of a batch need visual regions of one kind and equal length; region {index} is {kinds} with "
                f"{lengths} visual tokens. Send the rows one by one, or group them by length"
            )
        regions.append(Region(pixels, kinds[0]))
    return regions


def make_chooser(
    config: VideoXLConfig, sequence_length: int | None, ratio: int | None = None, seed: int | Sequence[int] = 42
) -> RatioChooser:
    """The ratio chooser of one sequence; `ratio` overrides `config.beacon_ratio`."""
    ratios = config.active_ratios if ratio is None else [ratio]
    return RatioChooser(
        ratios, config.beacon_ratio_mix, config.beacon_window, config.max_position_embeddings, sequence_length, seed
    )


def _are_features(image: Tensor, model: VideoXLModel) -> bool:
    return image.shape[1:] == (model.vision_tower.num_patches, model.vision_tower.hidden_size)


def chunk_frames(model: VideoXLModel) -> int:
    """Frames that go through the tower at once on the model's device."""
    return frames_at_once(model.vision_tower.device, model.vision_tower.hidden_size)


def frames_at_once(device: torch.device, tower_width: int) -> int:
    """The same for a tower: more where it is narrower than the one that `FRAMES_PER_CHUNK` was measured on."""
    return FRAMES_PER_CHUNK.get(device.type, 8) * max(1, VIT_L_WIDTH // tower_width)


def windows_at_once(config: VideoXLConfig, rows: int, elements: int = ELEMENTS_AT_ONCE) -> int:
    """Windows that go through the layers together, for that many rows of a batch.

    Args:
        elements: of the MLP's middle, at most.
    """
    if config._attn_implementation == "eager":  # keeps a mask and the weights of every window of a layer
        return 1
    return max(1, elements // (rows * config.beacon_window * config.intermediate_size))


def encode_frames(model: VideoXLModel, pixels: Tensor) -> Tensor:
    """Vision tower and projector: [F, 3, S, S] on any device -> [F, P, H] where the decoder's embeddings lie.

    Features of the tower [F, P, C] only pass the projector.
    """
    tower = model.vision_tower
    features = pixels.to(tower.device, tower.dtype) if _are_features(pixels, model) else tower(pixels)
    if model.gradient_checkpointing and model.training and torch.is_grad_enabled():
        # As wide as the decoder, on four times the tokens that stay after pooling.
        features = model._gradient_checkpointing_func(model.mm_projector.__call__, features)
    else:
        features = model.mm_projector(features)
    return features.to(model.input_device)


def iter_features(model: VideoXLModel, region: Region, progress: Progress | None = None) -> Iterator[Tensor]:
    """Visual tokens of a region, [B, t, H] at a time; a video comes in chunks of frames, a picture whole."""
    frames = len(region.pixels[0])
    if region.modality == "image":
        views = _encode_together(model, region.pixels).split([len(views) for views in region.pixels])
        yield torch.stack([merge_views(each, model.config) for each in views])
        return
    chunk = chunk_frames(model)
    rows = len(region.pixels)
    for start in range(0, frames, chunk):
        parts = [row[start : start + chunk] for row in region.pixels]
        tokens = _encode_together(model, parts, lambda features: pool_video(features, model.config))
        yield tokens.view(rows, -1, tokens.shape[-1])
        if progress is not None:
            progress(min(chunk, frames - start))


def _encode_together(
    model: VideoXLModel, parts: Sequence[Tensor], then: Callable[[Tensor], Tensor] = lambda features: features
) -> Tensor:
    """Frames of all rows of a batch through as few passes as may be; `then` makes less of each pass's features."""
    together = parts[0] if len(parts) == 1 else torch.cat(list(parts))
    return torch.cat([then(encode_frames(model, part)) for part in together.split(chunk_frames(model))])


def warn_of_unsummarised(carry: int, length: int) -> None:
    """`carry` tokens at the end of a region of `length` that no beacon follows."""
    warnings.warn(
        f"{carry} visual token(s) at the end of a region of {length} are not summarised: the compression ratio does "
        "not divide the region",
        UnsummarisedTokensWarning,
        stacklevel=3,
    )


class RegionReader:
    """Reads one visual region window by window, however its tokens arrive.

    Attributes:
        pending: [B, n, H] visual tokens that do not fill a window yet, n < window.
        steps: the windows read so far.
    """

    def __init__(self, model: VideoXLModel, cache: SummaryCache, chooser: RatioChooser):
        self.model = model
        self.cache = cache
        self.planner = RegionPlanner(model.config.beacon_window, chooser)
        self.pending: Tensor | None = None
        self.steps: list[WindowStep] = []

    def push(self, features: Tensor) -> Iterator[Tensor]:
        """Take [B, t, H] visual tokens, read every window they fill; yields hidden states of those read together."""
        if self.pending is not None:
            features = torch.cat([self.pending, features], dim=1)
        whole = features.shape[1] - features.shape[1] % self.planner.window
        yield from self._read(features[:, :whole])
        features = features[:, whole:]
        self.pending = features.clone() if features.shape[1] else None

    def close(self) -> Iterator[Tensor]:
        """Read the last, partial window, and say what stays unsummarised."""
        if self.pending is not None:
            yield from self._read(self.pending)
            self.pending = None
        if self.planner.carry:
            warn_of_unsummarised(self.planner.carry, self.planner.position)

    def fork(self, cache: SummaryCache) -> RegionReader:
        """A reader that goes on from here on another cache, without moving this one."""
        other = copy.copy(self)
        other.cache = cache
        other.planner = self.planner.fork()
        other.steps = list(self.steps)
        return other

    def _read(self, tokens: Tensor) -> Iterator[Tensor]:
        steps, planned = [], 0
        while planned < tokens.shape[1]:
            steps.append(self.planner.next_window(tokens.shape[1] - planned))
            planned += steps[-1].num_tokens
        limit = windows_at_once(self.model.config, len(tokens))
        for group in group_windows(steps, limit):
            self.steps += group
            length = sum(step.num_tokens for step in group)
            yield self.model.windows_step(tokens[:, :length], self.cache, group)
            tokens = tokens[:, length:]


def read_context(
    model: VideoXLModel,
    prompt: Prompt,
    regions: Iterable[Region],
    cache: SummaryCache,
    chooser: RatioChooser,
    progress: Progress | None = None,
) -> Iterator[Tensor]:
    """Read everything before the suffix; yields hidden states [B, t, H] of the expanded tokens, step by step."""
    for text, region in zip(prompt.texts, regions):
        if text.shape[1]:
            yield model.text_step(model.embed_tokens(text.to(model.input_device)), cache)
        reader = RegionReader(model, cache, chooser)
        for features in iter_features(model, region, progress):
            yield from reader.push(features)
        yield from reader.close()


def last_hidden(steps: Iterator[Tensor], before: Tensor | None = None) -> Tensor | None:
    """Run steps to their end; the hidden state [B, 1, H] of the last token, `before` where there is none.

    Nothing else of them is kept: the states of one step would lie in memory beside the next.
    """
    for hidden in steps:
        before = hidden[:, -1:].clone()
        del hidden
    return before


def check_finite(hidden: Tensor, cache: SummaryCache) -> None:
    """Raise `NonFiniteError` naming the first layer whose keys or values are not finite."""
    if torch.isfinite(hidden[:, -1]).all():
        return
    for index, layer in enumerate(cache.layers):
        if not all(torch.isfinite(part).all() for part in layer.stored):
            where = f"the input of decoder layer {index}"
            break
    else:
        where = "the output of the last decoder layer"
    raise NonFiniteError(
        f"NaN or infinity in {where} ({hidden.dtype}). Load the model with torch_dtype=torch.bfloat16 (or float32); "
        "if it stays, the checkpoint's weights are damaged"
    )
