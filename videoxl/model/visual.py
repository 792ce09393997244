"""Prepare visual inputs for the decoder: assign pixels to placeholders, then encode, project and pool them.

Shape letters: B batch, t tokens, H hidden size, F frames or views, P patches, S pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from videoxl.cost.batching import frames_at_once
from videoxl.errors import BatchError, PromptError
from videoxl.model.decoder.decoder import VideoXLModel
from videoxl.model.generation_checks import as_pixels
from videoxl.model.modality import Video, get_modality, visual_length
from videoxl.model.towers import VisionTower

Progress = Callable[[int], None]
"""Called with the number of frames read since the last call."""


@dataclass
class VisualSpan:
    """The pixels of one visual span in every row of a batch.

    Attributes:
        pixels: [F, 3, S, S] for each row, with the same F. Features of the tower [F, P, C] also work.
        modality: `video`, `image`, or one that was registered.
    """

    pixels: list[Tensor]
    modality: str

    def length(self, model: VideoXLModel) -> int:
        """Visual tokens of the visual span."""
        return visual_length(len(self.pixels[0]), model.tower.num_patches, self.modality, model.config)

    def num_passes(self, model: VideoXLModel) -> int:
        """Calls of the tower that `iter_features` makes for it."""
        return get_modality(self.modality).num_passes(list(map(len, self.pixels)), chunk_frames(model))


def arrange_spans(
    images: Sequence[Tensor] | Tensor,
    modalities: Sequence[str] | str | None,
    num_rows: int,
    num_spans: int,
    model: VideoXLModel,
) -> list[VisualSpan]:
    """Give each placeholder of each row its pixels; `images` is flat, row by row.

    Args:
        images: pixel values [F, 3, S, S] (a video, or the views of a picture) or [3, S, S]; or features that the
            vision tower computed from them, [F, P, C].
        modalities: `video` or `image` for each of `images`; one entry, or a text, serves all; None: `image`.

    Raises:
        PromptError: numbers of inputs that do not match, an unknown modality, no frames, pixels of another shape.
        BatchError: rows whose visual spans differ in kind or in number of visual tokens.
    """
    size = model.tower.image_size
    images = [as_pixels(image) for image in images]
    images = [image.unsqueeze(0) if image.shape == (3, size, size) else image for image in images]
    expected = num_rows * num_spans
    if len(images) != expected:
        raise PromptError(
            f"the prompt has {num_spans} <image> placeholder(s) in each of {num_rows} row(s), so {expected} visual "
            f"input(s) are needed; `images` holds {len(images)}"
        )
    modalities = [modalities] if isinstance(modalities, str) else list(modalities or ["image"])
    if len(modalities) == 1:
        modalities = modalities * expected
    if len(modalities) != expected:
        raise PromptError(
            f"`modalities` has {len(modalities)} entries for {expected} visual input(s); give one, or one each"
        )
    for image, modality in zip(images, modalities):
        get_modality(modality)  # raises where it is not known
        if not image.is_floating_point():
            raise PromptError(
                f"pixel values are {image.dtype}, which have not been normalised; use image_processor.normalize or "
                "process_images"
            )
        if image.shape[1:] != (3, size, size) and not _are_features(image, model):
            raise PromptError(
                f"pixel values must be [frames, 3, {size}, {size}]; got {list(image.shape)}. "
                "Use image_processor.preprocess or process_images"
            )
        if not len(image):
            raise PromptError("a visual input has no frames; give at least one")
    spans = []
    for index in range(num_spans):
        pixels, kinds = images[index::num_spans], modalities[index::num_spans]
        lengths = [visual_length(len(p), model.tower.num_patches, k, model.config) for p, k in zip(pixels, kinds)]
        if len(set(lengths)) > 1 or len(set(kinds)) > 1:
            raise BatchError(
                f"rows of a batch need visual spans of one kind and equal length; visual span {index} is {kinds} with "
                f"{lengths} visual tokens. Send the rows one by one, or group them by length"
            )
        spans.append(VisualSpan(pixels, kinds[0]))
    return spans


def _are_features(image: Tensor, model: VideoXLModel) -> bool:
    return image.shape[1:] == (model.tower.num_patches, model.tower.hidden_size)


def chunk_frames(model: VideoXLModel) -> int:
    """Frames that go through the tower at once on the model's device."""
    return frames_at_once(model.tower.device, model.tower.hidden_size)


def encode_frames(model: VideoXLModel, pixels: Tensor) -> Tensor:
    """Vision tower and projector: [F, 3, S, S] on any device -> [F, P, H] on the device of the decoder's embeddings.

    Features of the tower [F, P, C] go through the projector only.
    """
    tower, projector = model.tower, model.projector
    features = pixels.to(tower.device, tower.dtype) if _are_features(pixels, model) else tower(pixels)
    if model.gradient_checkpointing and model.training and torch.is_grad_enabled():
        # Its activations are as wide as the decoder's, for four times the tokens that remain after pooling.
        features = model._gradient_checkpointing_func(projector.__call__, features)
    else:
        features = projector(features)
    return features.to(model.input_device)


def iter_features(model: VideoXLModel, span: VisualSpan, progress: Progress | None = None) -> Iterator[Tensor]:
    """Visual tokens of a visual span, [B, t, H] at a time; a video comes in chunks of frames, a picture whole."""

    def encode(pixels: Tensor) -> Tensor:
        return encode_frames(model, pixels)

    modality = get_modality(span.modality)
    yield from modality.iter_tokens(encode, span.pixels, chunk_frames(model), model.config, progress)


def frame_tokens(model, pixels: Tensor) -> Tensor:
    """Visual tokens [F, t, H] of video frames, pixel values [F, 3, S, S], as `VideoMemory.extend_tokens` takes them."""
    tokens = Video().pool(encode_frames(model.model, pixels), model.config)
    return tokens.unflatten(0, (len(pixels), -1))


def iter_pixels(frames, tower: VisionTower) -> Iterator[tuple[Tensor, list[float], list[int]]]:
    """Pixel values for the tower with timestamps and indices, a bounded number of frames at a time."""
    limit = frames_at_once(tower.device, tower.hidden_size)
    for chunk in [frames] if isinstance(frames, Tensor) else frames:
        if isinstance(chunk, Tensor):
            if chunk.dim() != 4 or chunk.shape[1:] != (3, tower.image_size, tower.image_size):
                raise BatchError(
                    f"frames must be pixel values [frames, 3, {tower.image_size}, {tower.image_size}]; got "
                    f"{list(chunk.shape)}"
                )
            if not chunk.is_floating_point():
                raise BatchError(f"frames are {chunk.dtype}, not normalised; use image_processor.normalize first")
            for pixels in chunk.split(limit):
                yield pixels, [float("nan")] * len(pixels), [-1] * len(pixels)
        else:
            for start in range(0, len(chunk.frames), limit):
                part = slice(start, start + limit)
                yield chunk.pixels(tower.device, tower.dtype, part), chunk.timestamps[part], chunk.indices[part]
