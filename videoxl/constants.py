"""Constants shared by the whole package; the published code exports the same names."""

IGNORE_INDEX = -100
"""Label of a token that the loss ignores."""

IMAGE_TOKEN_INDEX = -200
"""Placeholder id in `input_ids` for one visual span (a picture or a video). Never decoded, never embedded."""

TOKEN_PERFRAME = 144
"""Visual tokens of one video frame: 24 x 24 patches pooled 2 x 2 (ViT-L/14 at 336 pixels)."""

DEFAULT_IMAGE_TOKEN = "<image>"
DEFAULT_IMAGE_PATCH_TOKEN = "<im_patch>"
DEFAULT_IM_START_TOKEN = "<im_start>"
DEFAULT_IM_END_TOKEN = "<im_end>"
