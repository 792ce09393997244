"""Turn pictures into pixel values: the views that `image_aspect_ratio` asks for."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from videoxl.errors import ConfigError
from videoxl.media.pictures import load_picture, pad_to_square, parse_grids, split_into_views
from videoxl.media.pixels import VideoXLImageProcessor


def process_images(images: Sequence, image_processor: VideoXLImageProcessor, model_cfg) -> Tensor | list:
    """Pixel values of pictures by `model_cfg.image_aspect_ratio`.

    Args:
        images: anything that `load_picture` opens: paths, PIL pictures, uint8 arrays [H, W, 3].

    Returns:
        `anyres`: [views, 3, S, S] per picture, view 0 the whole picture; stacked if all have equally many views.
        `pad`, `square` or None: [pictures, 3, S, S].
    """
    resized = [resize_views(image, image_processor, model_cfg) for image in images]
    views = [image_processor.normalize(frames) for frames in resized]
    if not is_anyres(model_cfg):
        return torch.cat(views)
    return torch.stack(views) if len({len(v) for v in views}) == 1 else views


def is_anyres(model_cfg) -> bool:
    """Whether pictures are cut into tiles."""
    return (getattr(model_cfg, "image_aspect_ratio", None) or "").startswith("anyres")


def resize_views(image, image_processor: VideoXLImageProcessor, model_cfg) -> Tensor:
    """The views of one picture, uint8 [views, S, S, 3]: `process_images` before it normalises."""
    mode = getattr(model_cfg, "image_aspect_ratio", None)
    picture = load_picture(image)
    if is_anyres(model_cfg):
        grids = parse_grids(model_cfg.image_grid_pinpoints, image_processor.side)
        return image_processor.resize(split_into_views(picture, grids, image_processor.side))
    if mode == "pad":
        red, green, blue = (int(mean * 255) for mean in image_processor.image_mean)
        picture = pad_to_square(picture, (red, green, blue))
    elif mode not in ("square", None):
        raise ConfigError(f"image_aspect_ratio is {mode!r}; the values that work are anyres, pad and square")
    return image_processor.resize(picture)
