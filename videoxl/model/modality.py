"""Kinds of visual input: how the frames or views of an input become visual tokens, and how many.

Shape letters: B rows, F frames or views, P patches in raster order, t visual tokens, H hidden size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from videoxl.errors import PromptError
from videoxl.model.configuration import VideoXLConfig
from videoxl.model.pooling import pool_patches, pooled_length
from videoxl.utils.registry import Registry

Encode = Callable[[Tensor], Tensor]
"""Vision tower and projector: pixel values [F, 3, S, S] -> features [F, P, H]."""


class Modality(ABC):
    """One kind of visual input. A prompt holds `<image>` for each, whatever its kind.

    Attributes:
        name: its name in calls and in data records.
    """

    name: ClassVar[str]

    @abstractmethod
    def num_tokens(self, num_views: int, num_patches: int, config: VideoXLConfig) -> int:
        """Visual tokens of an input with `num_views` frames or views, known before anything is encoded."""

    @abstractmethod
    def num_passes(self, lengths: Sequence[int], chunk: int) -> int:
        """Calls of the tower that `iter_tokens` makes for rows with these numbers of frames or views."""

    @abstractmethod
    def iter_tokens(
        self,
        encode: Encode,
        rows: Sequence[Tensor],
        chunk: int,
        config: VideoXLConfig,
        progress: Callable[[int], None] | None = None,
    ) -> Iterator[Tensor]:
        """Visual tokens [B, t, H] of one input in every row, in parts.

        Args:
            rows: pixel values [F, 3, S, S], or features [F, P, C] of the tower, of each row.
            chunk: frames that go through `encode` at once.
            progress: called with numbers of frames as they are read.
        """


class Video(Modality):
    """Frames: each pooled to fewer tokens, one frame after the other (144 per frame in the published geometry)."""

    name = "video"

    def num_tokens(self, num_views: int, num_patches: int, config: VideoXLConfig) -> int:
        return num_views * pooled_length(num_patches, config.mm_spatial_pool_stride)

    def num_passes(self, lengths: Sequence[int], chunk: int) -> int:
        parts = [min(chunk, lengths[0] - start) for start in range(0, lengths[0], chunk)]
        return sum(-(-part * len(lengths) // chunk) for part in parts)

    def iter_tokens(self, encode, rows, chunk, config, progress=None):
        frames = len(rows[0])
        for start in range(0, frames, chunk):
            parts = [row[start : start + chunk] for row in rows]
            tokens = _encode_together(encode, parts, chunk, lambda features: self.pool(features, config))
            yield tokens.view(len(rows), -1, tokens.shape[-1])
            if progress is not None:
                progress(min(chunk, frames - start))

    def pool(self, features: Tensor, config: VideoXLConfig) -> Tensor:
        """Visual tokens of frames, concatenated: [F, P, H] -> [F * t, H]."""
        return pool_patches(features, config.mm_spatial_pool_stride, config.mm_spatial_pool_mode).flatten(0, 1)


class Picture(Modality):
    """A picture of any size: view 0 is the whole of it, the others its tiles.

    `unires`: the tiles, each average-pooled 2 x 2, in raster order; a single view as it is. `flat`: all views unpooled.
    """

    name = "image"

    def num_tokens(self, num_views: int, num_patches: int, config: VideoXLConfig) -> int:
        if config.mm_patch_merge_type == "flat" or num_views == 1:
            return num_views * num_patches
        return (num_views - 1) * pooled_length(num_patches, 2)

    def num_passes(self, lengths: Sequence[int], chunk: int) -> int:
        return -(-sum(lengths) // chunk)

    def iter_tokens(self, encode, rows, chunk, config, progress=None):
        views = _encode_together(encode, rows, chunk).split([len(each) for each in rows])
        yield torch.stack([self.merge(each, config) for each in views])

    def merge(self, features: Tensor, config: VideoXLConfig) -> Tensor:
        """Visual tokens of one picture: [F, P, H] -> [t, H]."""
        if config.mm_patch_merge_type == "flat" or features.shape[0] == 1:
            return features.flatten(0, 1)
        return pool_patches(features[1:], 2, "average").flatten(0, 1)


MODALITIES: Registry[type[Modality]] = Registry(
    "modality",
    "videoxl.modalities",
    {"video": "videoxl.model.modality:Video", "image": "videoxl.model.modality:Picture"},
    PromptError,
)


def get_modality(name: str | Modality) -> Modality:
    """The modality of that name. Raises `PromptError` for an unknown one."""
    return name if isinstance(name, Modality) else MODALITIES.get(name)()


def visual_length(num_views: int, num_patches: int, modality: str, config: VideoXLConfig) -> int:
    """`Modality.num_tokens` by the modality's name."""
    return get_modality(modality).num_tokens(num_views, num_patches, config)


def _encode_together(
    encode: Encode, parts: Sequence[Tensor], chunk: int, then: Callable[[Tensor], Tensor] = lambda features: features
) -> Tensor:
    """Encode the frames of all rows in as few passes as possible; `then` reduces each pass's features."""
    together = parts[0] if len(parts) == 1 else torch.cat(list(parts))
    return torch.cat([then(encode(part)) for part in together.split(chunk)])
