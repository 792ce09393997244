"""Helpers that the published quick start imports: pictures to pixel values, prompts to token ids."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import StoppingCriteria

from videoxl.constants import DEFAULT_IMAGE_TOKEN, IMAGE_TOKEN_INDEX
from videoxl.errors import ConfigError, PromptError
from videoxl.image_processing import VideoXLImageProcessor
from videoxl.pictures import load_picture, pad_to_square, parse_grids, split_into_views


def process_images(images: Sequence, image_processor: VideoXLImageProcessor, model_cfg) -> Tensor | list:
    """Pixel values of pictures by `model_cfg.image_aspect_ratio`.

    Args:
        images: anything that `load_picture` opens: paths, PIL pictures, uint8 arrays [H, W, 3].

    Returns:
        `anyres`: [views, 3, S, S] a picture, view 0 the whole picture, stacked where all have equally many views.
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
        colour = tuple(int(mean * 255) for mean in image_processor.image_mean)
        picture = pad_to_square(picture, colour)
    elif mode not in ("square", None):
        raise ConfigError(f"image_aspect_ratio is {mode!r}; the values that work are anyres, pad and square")
    return image_processor.resize(picture)


def tokenizer_image_token(
    prompt: str, tokenizer, image_token_index: int = IMAGE_TOKEN_INDEX, return_tensors: str | None = None
) -> list[int] | Tensor:
    """Ids of a prompt with `image_token_index` for each `<image>` in it.

    Returns:
        A list, or an int64 tensor [L] for `return_tensors="pt"`.
    """
    chunks = [tokenizer(chunk).input_ids for chunk in prompt.split(DEFAULT_IMAGE_TOKEN)]
    bos = tokenizer.bos_token_id
    starts_with_bos = bos is not None and chunks[0][:1] == [bos]
    ids = list(chunks[0])
    for chunk in chunks[1:]:
        ids.append(image_token_index)
        ids += chunk[1:] if starts_with_bos else chunk
    if return_tensors is None:
        return ids
    if return_tensors != "pt":
        raise ValueError(f"return_tensors is {return_tensors!r}; use 'pt' or None")
    return torch.tensor(ids, dtype=torch.long)


def transform_input_id(input_ids: Tensor, num_tokens: int, special_token: int) -> Tensor:
    """The expanded prompt that `generate` returns: the placeholder in ids [B, L] as `num_tokens` of `special_token`."""
    places = (input_ids == IMAGE_TOKEN_INDEX).nonzero()
    if len(places) == 0:
        raise PromptError("input_ids holds no <image> placeholder to expand")
    place = int(places[0, 1])
    visual = input_ids.new_full((len(input_ids), num_tokens), special_token)
    return torch.cat([input_ids[:, :place], visual, input_ids[:, place + 1 :]], dim=1)


def get_model_name_from_path(model_path: str) -> str:
    """A folder's last name; for a `checkpoint-N` folder its parent's too."""
    parts = str(model_path).strip("/").split("/")
    return "_".join(parts[-2:]) if parts[-1].startswith("checkpoint-") else parts[-1]


class KeywordsStoppingCriteria(StoppingCriteria):
    """Stop a row as soon as its new text holds one of the keywords."""

    def __init__(self, keywords: Sequence[str], tokenizer, input_ids: Tensor | None = None):
        """`input_ids` is taken for compatibility: the expanded prompt is longer, so its end is found on the way."""
        self.keywords = list(keywords)
        self.tokenizer = tokenizer
        self._prompt_length: int | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs) -> Tensor:
        if self._prompt_length is None or input_ids.shape[1] <= self._prompt_length:
            self._prompt_length = input_ids.shape[1] - 1  # asked first when one new token is there
        texts = self.tokenizer.batch_decode(input_ids[:, self._prompt_length :], skip_special_tokens=False)
        found = [any(keyword in text for keyword in self.keywords) for text in texts]
        return torch.tensor(found, dtype=torch.bool, device=input_ids.device)
