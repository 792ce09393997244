"""`load_pretrained_model`: load tokenizer, model, image processor and context length from a checkpoint folder."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from pickle import UnpicklingError

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import BitsAndBytesConfig
from transformers.utils import is_flash_attn_2_available

from videoxl.errors import CheckpointError, ConfigError, MissingDependencyError, VideoXLError, one_line
from videoxl.media.pixels import VideoXLImageProcessor
from videoxl.model.configuration import VideoXLConfig
from videoxl.model.decoder.fp8 import to_fp8
from videoxl.model.modeling import LlavaQwenForCausalLM
from videoxl.model.preflight import read_config
from videoxl.model.tokenizer import check_tokenizer, load_tokenizer
from videoxl.model.towers import find_tower_folder, tower_class
from videoxl.model.weight_checksums import verify_checksums

# What reading a damaged or foreign folder raises, beside our own errors.
_LOADING_ERRORS = (OSError, SafetensorError, ValueError, KeyError, UnpicklingError, StrictDataclassError)
# A small share of the weights, but a large share of the quantisation error.
UNQUANTIZED = ["model.vision_tower", "model.mm_projector", "lm_head"]
_VISUAL_PREFIXES = ("model.vision_tower.", "model.mm_projector.")


def load_pretrained_model(
    model_path: str | Path,
    model_base: str | Path | None = None,
    model_name: str = "llava_qwen",
    load_8bit: bool = False,
    load_4bit: bool = False,
    load_fp8: bool = False,
    device_map: str | dict | None = "auto",
    attn_implementation: str | None = None,
    customized_config: VideoXLConfig | None = None,
    overwrite_config: dict | None = None,
    torch_dtype: str | torch.dtype = "auto",
    multimodal: bool = True,
    verify: bool = False,
    **kwargs,
):
    """Load a checkpoint in the published layout.

    Args:
        model_path: a checkpoint folder, or a hub id; with `model_base`, a folder that holds a projector
            (`mm_projector.bin` or `.safetensors`) or a LoRA adapter, which is merged.
        model_base: the checkpoint or plain Qwen2 model that `model_path` builds on.
        model_name, multimodal: ignored, kept for callers of the published loader; the folder's content decides.
        load_8bit, load_4bit: quantise the decoder's weights through bitsandbytes (extra `quant`).
        load_fp8: run the decoder's matrix products in FP8; see `to_fp8`.
        device_map: as in transformers; `auto` uses the GPUs there are, or the CPU.
        attn_implementation: `sdpa` (default), `eager` or `flash_attention_2` (falls back to sdpa where not installed).
        customized_config: a configuration to use in place of the checkpoint's.
        overwrite_config: configuration keys to set.
        verify: compare the weights with the checksums that `save_pretrained` wrote beside them.
        torch_dtype: `auto` is bf16 (fp16 where the GPU has no bf16), float32 on the CPU.
        **kwargs: passed to `from_pretrained`.

    Returns:
        (tokenizer, model in eval mode, image processor, context length in tokens).

    Raises:
        CheckpointError: a missing folder or file, keys or shapes that do not fit; the message names them.
        ConfigError: a configuration that asks for something Video-XL does not contain.
        MissingDependencyError: bitsandbytes, peft or OpenCLIP is needed and not installed.
    """
    path, base = Path(model_path), None if model_base is None else Path(model_base)
    adapter = (path / "adapter_config.json").is_file()
    if adapter and base is None:
        base = _adapters_base(path)
    on_cpu = device_map == "cpu" or not torch.cuda.is_available()
    if device_map == "auto" and on_cpu:
        device_map = "cpu"
    kwargs |= {
        "device_map": device_map,
        "dtype": _pick_dtype(torch_dtype, on_cpu),
        "attn_implementation": pick_attention(attn_implementation),
        "config": _read_config(path, base, customized_config, overwrite_config),
    }
    if verify:
        verify_checksums(path)
    quantization = _quantization(load_8bit, load_4bit, kwargs["dtype"])
    if quantization is not None:
        kwargs["quantization_config"] = quantization
    try:
        if base is None:
            model = LlavaQwenForCausalLM.from_pretrained(path, **kwargs)
        elif adapter:
            model = _merge_adapter(*_load_base(base, path, kwargs), path)
        else:
            model, _ = _load_base(base, path, kwargs)
            load_projector(model, path)
        source = path if (path / "tokenizer_config.json").is_file() or base is None else base
        tokenizer = load_tokenizer(source)
        check_tokenizer(tokenizer, source, model.config.vocab_size)
    except TypeError as error:
        raise ConfigError(f"cannot load {path}: {error}; see load_pretrained_model for what it takes") from error
    except (*_LOADING_ERRORS, RuntimeError) as error:
        if isinstance(error, (VideoXLError, torch.OutOfMemoryError)):
            raise
        raise CheckpointError(f"cannot load {path}: {one_line(error)}") from error
    if load_fp8:
        to_fp8(model)
    config = model.config
    context = getattr(config, "tokenizer_model_max_length", None) or config.max_position_embeddings
    return tokenizer, model.eval(), _image_processor(path, base, model), context


def _read_config(path: Path, base: Path | None, custom: VideoXLConfig | None, overwrite: dict | None) -> VideoXLConfig:
    config = custom
    if config is None:
        folder = path if (path / "config.json").is_file() or base is None else base
        if folder.exists() and not folder.is_dir():
            raise CheckpointError(f"{folder} is a file; give the folder of a checkpoint")
        if not folder.exists() and (folder.is_absolute() or len(folder.parts) != 2 or str(folder).startswith(".")):
            raise CheckpointError(f"no such checkpoint folder: {folder}")
        if folder.is_dir():
            kind = _stored_model_type(folder)
            if kind not in (VideoXLConfig.model_type, "qwen2" if base is not None else None):
                raise CheckpointError(f"{folder} holds a {kind!r} model; a Video-XL checkpoint has 'llava_qwen'")
        try:
            config = VideoXLConfig.from_pretrained(folder, local_files_only=folder.is_dir())
        except (*_LOADING_ERRORS, TypeError, AttributeError) as error:  # whatever a value of another kind raises
            if isinstance(error, VideoXLError):
                raise
            raise CheckpointError(f"cannot read the configuration of {folder}: {one_line(error)}") from error
    for key, value in (overwrite or {}).items():
        setattr(config, key, value)
    found = tower_class(config)
    if found is not None:
        # Resolved now, while `path` is known; saved with the model, it makes a checkpoint self-contained.
        found.complete(config, path)
    return config


def _adapters_base(path: Path) -> Path:
    """The folder that an adapter was made for. Raises `CheckpointError`: not here; a hub id is for the user to name."""
    try:
        named = json.loads((path / "adapter_config.json").read_text())["base_model_name_or_path"]
        base = Path(named)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path / 'adapter_config.json'} names no base: {one_line(error)}") from error
    if not base.is_dir():
        raise CheckpointError(f"{path} is an adapter of {named!r}, which is no folder here; name it as model_base")
    return base


def _stored_model_type(folder: Path) -> str | None:
    if not os.path.lexists(folder / "config.json"):
        raise CheckpointError(f"{folder} is no checkpoint: it has no config.json")
    return read_config(folder).get("model_type")


def _pick_dtype(wanted: str | torch.dtype, on_cpu: bool) -> torch.dtype:
    if isinstance(wanted, torch.dtype):
        return wanted
    if wanted != "auto":
        dtype = getattr(torch, wanted, None)
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point or dtype.itemsize < 2:
            raise ConfigError(f"torch_dtype is {wanted!r}; use auto, bfloat16, float16 or float32")
        return dtype
    if on_cpu:
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def pick_attention(wanted: str | None) -> str:
    if wanted == "flash_attention_2" and not is_flash_attn_2_available():
        warnings.warn("flash-attn is not installed; using sdpa attention, which gives the same results", stacklevel=3)
        return "sdpa"
    return wanted or "sdpa"


def _quantization(load_8bit: bool, load_4bit: bool, dtype: torch.dtype) -> BitsAndBytesConfig | None:
    if not (load_8bit or load_4bit):
        return None
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError("4- and 8-bit weights need bitsandbytes: pip install 'videoxl[quant]'") from error
    if load_4bit:
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_compute_dtype=dtype,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            llm_int8_skip_modules=UNQUANTIZED,
        )
    return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=UNQUANTIZED)


def _load_base(base: Path, path: Path, kwargs: dict) -> tuple[LlavaQwenForCausalLM, set[str]]:
    """The base model, with the tower's own weights if it lacks a tower; and the projector keys that it lacks."""
    model, info = LlavaQwenForCausalLM.from_pretrained(
        base, may_lack=_VISUAL_PREFIXES, output_loading_info=True, **kwargs
    )
    if any(key.startswith("model.vision_tower.") for key in info["missing_keys"]):
        folder = find_tower_folder(model.config, path) or find_tower_folder(model.config, base)
        if folder is None:
            raise CheckpointError(
                f"{base} has no vision tower, and the folder {model.config.mm_vision_tower!r} that the configuration "
                "names does not exist; put it at that path, or beside the checkpoint"
            )
        model.model.vision_tower.load_weights(folder)
    lacking = {key for key in info["missing_keys"] if key.startswith("model.mm_projector.")}
    return model, lacking


def load_projector(model: LlavaQwenForCausalLM, path: Path) -> None:
    """Load weights from `mm_projector.safetensors` or `.bin`, whose keys end in the projector's own names.

    Args:
        path: the file, or the folder that holds it.

    Raises:
        CheckpointError: no such file, an unreadable one, or weights that do not fit.
    """
    if not path.exists():
        raise CheckpointError(f"no such projector: {path}")
    folder, stem = (path.parent, path.stem) if path.is_file() else (path, "mm_projector")
    try:
        weights = _read_weights(folder, stem)
    except (SafetensorError, RuntimeError, UnpicklingError, EOFError, ValueError) as error:
        raise CheckpointError(f"{path} is not a projector file: {error}") from error
    if weights is None:
        raise CheckpointError(f"{folder} has neither mm_projector.safetensors nor mm_projector.bin")
    wanted = {key.split("mm_projector.")[-1]: value for key, value in weights.items() if "mm_projector." in key}
    projector = model.model.mm_projector
    if projector is None:
        raise CheckpointError("the model names no vision tower, so it has no projector to fill")
    try:
        projector.load_state_dict(wanted)
    except RuntimeError as error:
        raise CheckpointError(f"the projector in {path} does not fit: {error}") from error


def _merge_adapter(model: LlavaQwenForCausalLM, lacking: set[str], folder: Path) -> LlavaQwenForCausalLM:
    """Merge a LoRA adapter, after loading the weights that were trained in full beside it."""
    try:
        from peft import PeftModel
    except ImportError as error:
        raise MissingDependencyError("a LoRA folder needs peft: pip install 'videoxl[train]'") from error
    full = _read_weights(folder, "non_lora_trainables") or {}
    full = {key.removeprefix("base_model.model."): value for key, value in full.items()}
    unexpected = model.load_state_dict(full, strict=False).unexpected_keys
    if unexpected:
        raise CheckpointError(f"{folder}: non_lora_trainables holds unknown keys {unexpected[:8]}")
    adapted = PeftModel.from_pretrained(model, folder)
    whole = getattr(adapted.peft_config["default"], "modules_to_save", None) or []
    if lacking - full.keys() and "mm_projector" not in whole:
        raise CheckpointError(
            f"neither the base nor non_lora_trainables in {folder} holds the projector: "
            f"{sorted(lacking - full.keys())[:8]} are missing"
        )
    return adapted.merge_and_unload()


def _read_weights(folder: Path, stem: str) -> dict[str, torch.Tensor] | None:
    if (folder / f"{stem}.safetensors").is_file():
        return load_file(folder / f"{stem}.safetensors")
    if (folder / f"{stem}.bin").is_file():
        return torch.load(folder / f"{stem}.bin", map_location="cpu", weights_only=True)
    return None


def _image_processor(path: Path, base: Path | None, model: LlavaQwenForCausalLM) -> VideoXLImageProcessor | None:
    if model.model.vision_tower is None:
        return None
    folders = [path, base, find_tower_folder(model.config, path)]
    for folder in folders:
        if folder is not None and (folder / "preprocessor_config.json").is_file():
            found = VideoXLImageProcessor.from_pretrained(folder)
            if found.side != model.model.vision_tower.image_size:
                raise CheckpointError(
                    f"{folder}: preprocessor_config.json gives pictures of {found.side} pixels; the vision tower reads "
                    f"{model.model.vision_tower.image_size}"
                )
            return found
    return model.model.vision_tower.image_processor()


def get_model_name_from_path(model_path: str) -> str:
    """The last part of a path; for a `checkpoint-N` folder, prefixed by its parent's name."""
    parts = str(model_path).strip("/").split("/")
    return "_".join(parts[-2:]) if parts[-1].startswith("checkpoint-") else parts[-1]
