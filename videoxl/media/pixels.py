"""Frames and pictures to pixel values: CLIP's preprocessing, exact, on any device, without torchvision.

The published values come from Pillow's bicubic filter, which works in fixed point, one axis after the other, and rounds
to 8 bits in between. On the CPU Pillow itself does it; elsewhere the same integers are computed in plain torch, so
that frames can be resized where the model is.

Shape letters: F frames, H height, W width, S side of the model's input.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers.image_processing_utils import BatchFeature

from videoxl.errors import CheckpointError, PictureError
from videoxl.media.pictures import load_picture
from videoxl.media.resize import resize_and_crop_frame, shorter_side_to
from videoxl.utils.numbers import is_number, is_whole_number

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_PRECISION = 22  # bits of Pillow's fixed-point filter weights (Resample.c)
_CONFIG_NAME = "preprocessor_config.json"
_LARGEST_SIDE, _LARGEST_NORM = 1 << 14, 1e3


class VideoXLImageProcessor:
    """CLIP preprocessing with the interface of transformers' image processors.

    Args:
        size: side S of the square that the model reads.
        image_mean, image_std: one number per channel, for values from 0 to 1.
    """

    def __init__(self, size: int = 336, image_mean: Sequence[float] = CLIP_MEAN, image_std: Sequence[float] = CLIP_STD):
        self.side = size
        self.size = {"shortest_edge": size}
        self.crop_size = {"height": size, "width": size}
        self.image_mean = list(image_mean)
        self.image_std = list(image_std)

    def preprocess(self, images, return_tensors: str | None = "pt", **_) -> BatchFeature:
        """Resize the shorter side to S (bicubic), crop the centre, scale to 0..1, normalise.

        Args:
            images: uint8 array or tensor [F, H, W, 3] or [H, W, 3], a PIL picture, a path, or a list of these.
            return_tensors: `pt`, `np` or None (a list of arrays).

        Returns:
            `pixel_values`: [F, 3, S, S] float32.
        """
        pixels = self.normalize(self.resize(images))
        if return_tensors == "pt":
            return BatchFeature({"pixel_values": pixels})
        array = pixels.numpy()
        return BatchFeature({"pixel_values": array if return_tensors == "np" else list(array)})

    __call__ = preprocess

    def resize(self, images) -> Tensor:
        """Anything that `preprocess` takes -> uint8 [F, S, S, 3]: pixels not yet normalised."""
        return torch.cat([self.resize_and_crop(frames) for frames in _batches(images)])

    def resize_and_crop(self, frames: Tensor) -> Tensor:
        """uint8 [F, H, W, 3] -> uint8 [F, S, S, 3], on the device of `frames`."""
        if frames.device.type == "cpu":
            cropped = [resize_and_crop_frame(frame, self.side) for frame in frames.numpy()]
            return torch.from_numpy(np.stack(cropped))
        scaled_height, scaled_width = shorter_side_to(frames.shape[1], frames.shape[2], self.side)
        top, left = (scaled_height - self.side) // 2, (scaled_width - self.side) // 2
        rows, columns = slice(top, top + self.side), slice(left, left + self.side)
        return resize_fixed_point(frames, scaled_height, scaled_width, rows, columns)

    def normalize(self, frames: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """uint8 [F, S, S, 3] -> normalised [F, 3, S, S] in `dtype`, computed in float32, on the device of `frames`."""
        mean, std = (_on(frames.device, *values) for values in (self.image_mean, self.image_std))
        pixels = (frames.float() / 255 - mean) / std
        return pixels.permute(0, 3, 1, 2).to(dtype).contiguous()

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> VideoXLImageProcessor:
        """Read `preprocessor_config.json` in CLIP's form."""
        path = Path(folder) / _CONFIG_NAME
        try:
            stored = json.loads(path.read_text())
            size: Any = stored.get("crop_size") or stored["size"]
            side: Any = size.get("height", size.get("shortest_edge")) if isinstance(size, dict) else size
            mean, std = stored["image_mean"], stored["image_std"]
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CheckpointError(f"{path} is not a CLIP preprocessor configuration: {error!r}") from error
        if not is_whole_number(side) or not 1 <= side <= _LARGEST_SIDE:
            raise CheckpointError(f"{path}: the size is {str(size)[:60]}; it must be 1 to {_LARGEST_SIDE:,}")
        for name, values in (("image_mean", mean), ("image_std", std)):
            is_triple = isinstance(values, list) and len(values) == 3
            if not is_triple or not all(is_number(x) and abs(x) < _LARGEST_NORM for x in values):
                raise CheckpointError(f"{path}: {name} is {str(values)[:60]}; it must be three numbers")
        if min(std) <= 0:
            raise CheckpointError(f"{path}: image_std is {std}; it must be above 0")
        return cls(int(side), mean, std)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `preprocessor_config.json` as CLIP's processor does."""
        stored = {
            "image_processor_type": "CLIPImageProcessor",
            "do_resize": True,
            "size": self.size,
            "resample": int(Image.Resampling.BICUBIC),
            "do_center_crop": True,
            "crop_size": self.crop_size,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": self.image_mean,
            "image_std": self.image_std,
            "do_convert_rgb": True,
        }
        (Path(folder) / _CONFIG_NAME).write_text(json.dumps(stored, indent=2) + "\n")


@lru_cache(maxsize=16)
def _on(device: torch.device, *values: float) -> Tensor:
    """Cached per device: every such copy waits for all queued GPU work."""
    with torch.inference_mode(False):  # an inference tensor kept here could not be used in training
        return torch.tensor(values, device=device)


def resize_fixed_point(
    frames: Tensor, height: int, width: int, rows: slice = slice(None), columns: slice = slice(None)
) -> Tensor:
    """Pillow's bicubic filter in plain torch, equal to the bit, on any device that has float64.

    Args:
        frames: uint8 [F, H, W, 3].
        height, width: size of the whole result.
        rows, columns: the part of the result to compute.

    Returns:
        uint8 [F, rows, columns, 3].
    """
    pixels = frames.permute(0, 3, 1, 2).double()
    across = filter_weights(frames.shape[2], width, frames.device)[columns]
    down = filter_weights(frames.shape[1], height, frames.device)[rows]
    pixels = _to_8_bits(pixels @ across.T)
    return _to_8_bits(down @ pixels).to(torch.uint8).permute(0, 2, 3, 1)


def _to_8_bits(sums: Tensor) -> Tensor:
    # The sums are integers below 2**53, so float64 holds them exactly.
    return torch.floor((sums + (1 << (_PRECISION - 1))) / (1 << _PRECISION)).clamp(0, 255)


@lru_cache(maxsize=16)
def filter_weights(size_in: int, size_out: int, device: torch.device) -> Tensor:
    """Pillow's bicubic weights as integers in float64, [size_out, size_in]."""
    if size_in == size_out:  # Pillow skips the pass
        return torch.eye(size_in, dtype=torch.float64, device=device) * (1 << _PRECISION)
    scale = size_in / size_out
    stretch = max(scale, 1.0)
    weights = np.zeros((size_out, size_in))
    for row in range(size_out):
        center = (row + 0.5) * scale
        first = max(int(center - 2 * stretch + 0.5), 0)
        last = min(int(center + 2 * stretch + 0.5), size_in)
        taps = np.array([_bicubic((x - center + 0.5) / stretch) for x in range(first, last)])
        fixed = taps / taps.sum() * (1 << _PRECISION)
        weights[row, first:last] = np.trunc(fixed + np.copysign(0.5, fixed))
    return torch.from_numpy(weights).to(device)


def _bicubic(x: float) -> float:
    """Keys' kernel with a = -0.5."""
    x = abs(x)
    if x < 1:
        return (1.5 * x - 2.5) * x * x + 1
    return ((-0.5 * x + 2.5) * x - 4) * x + 2 if x < 2 else 0.0


def _batches(images) -> list[Tensor]:
    """Any input that `preprocess` takes, as uint8 tensors [F, H, W, 3]."""
    if isinstance(images, (Image.Image, str, Path)):
        images = np.array(load_picture(images))
    if isinstance(images, (list, tuple)):
        if not images:
            raise PictureError("there is nothing to preprocess: the list of images is empty")
        return [batch for image in images for batch in _batches(image)]
    frames = torch.as_tensor(images)
    if frames.dim() == 3:
        frames = frames.unsqueeze(0)
    if frames.dim() != 4 or frames.shape[3] != 3 or frames.dtype != torch.uint8 or not all(frames.shape):
        raise PictureError(
            f"images must be uint8 [frames, height, width, 3] with at least one frame; got {frames.dtype} "
            f"{list(frames.shape)}"
        )
    return [frames]
