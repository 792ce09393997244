"""Helpers under the import path of the published quick start; defined in `media`, `chat` and `model`."""

from videoxl.chat import tokenizer_image_token
from videoxl.media.views import process_images, resize_views
from videoxl.model.loading import get_model_name_from_path
from videoxl.model.prompt import transform_input_id
from videoxl.model.stopping import KeywordsStoppingCriteria

__all__ = [
    "KeywordsStoppingCriteria",
    "get_model_name_from_path",
    "process_images",
    "resize_views",
    "tokenizer_image_token",
    "transform_input_id",
]
