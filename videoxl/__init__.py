"""Video-XL: an extra-long video language model. Importing it makes `llava_qwen` known to transformers' auto classes."""

import os

from videoxl.version import __version__

# The child process that decodes videos (videoxl.video_worker) needs neither torch nor transformers.
if not os.environ.get("VIDEOXL_DECODER_PROCESS"):
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    from videoxl.model.configuration import VideoXLConfig
    from videoxl.model.memory import VideoMemory
    from videoxl.model.modeling import LlavaQwenForCausalLM

    AutoConfig.register(VideoXLConfig.model_type, VideoXLConfig, exist_ok=True)
    AutoModelForCausalLM.register(VideoXLConfig, LlavaQwenForCausalLM, exist_ok=True)
    AutoModelForImageTextToText.register(VideoXLConfig, LlavaQwenForCausalLM, exist_ok=True)

    __all__ = ["LlavaQwenForCausalLM", "VideoMemory", "VideoXLConfig", "__version__"]
