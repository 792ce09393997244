"""Facts about a checkpoint, a memory file or a video, as flat dictionaries; `videoxl info` prints them."""

from __future__ import annotations

import json
import math
from pathlib import Path

from safetensors import SafetensorError, safe_open

from videoxl.cache.memory_file import is_memory_file, read_state
from videoxl.errors import CheckpointError
from videoxl.media.gpu_decoders import find_gpu
from videoxl.media.info import VideoInfo
from videoxl.media.pixels import VideoXLImageProcessor
from videoxl.media.stream import probe_video
from videoxl.model.configuration import VideoXLConfig, check_config
from videoxl.model.memory import VideoMemory


def describe(path: Path) -> dict:
    """Describe a checkpoint folder, a memory file or a video. If it cannot be read, raises the error of that kind."""
    if path.is_dir():
        return describe_checkpoint(path)
    if is_memory_file(path):
        return describe_memory(path)
    return describe_video(path)


def describe_checkpoint(folder: Path) -> dict:
    """Shape, compression and size of a checkpoint, from its configuration and file headers; nothing is loaded."""
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder} is no checkpoint: it has no config.json")
    try:
        config = VideoXLConfig.from_pretrained(folder)
        stored = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"the configuration of {folder} cannot be read: {error}") from error
    if stored.get("model_type") != VideoXLConfig.model_type:
        raise CheckpointError(f"{folder} holds a {stored.get('model_type')!r} model; a Video-XL one has 'llava_qwen'")
    check_config(config)
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise CheckpointError(f"{folder} holds no .safetensors file")
    parameters, dtypes = 0, set()
    for file in files:
        try:
            with safe_open(file, framework="pt") as weights:
                for name in weights.keys():
                    view = weights.get_slice(name)
                    parameters += math.prod(view.get_shape())
                    dtypes.add(view.get_dtype())
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{file} cannot be read (cut short, or damaged): {error}") from error
    return {
        "kind": "checkpoint",
        "path": str(folder),
        "parameters": parameters,
        "dtype": ", ".join(sorted(dtypes)),
        "bytes": sum(file.stat().st_size for file in files),
        "decoder": f"{config.num_hidden_layers} layers of {config.hidden_size}, {config.num_attention_heads} heads, "
        f"{config.num_key_value_heads} for keys and values",
        "vision_tower": config.mm_vision_tower,
        "beacon_window": config.beacon_window,
        "beacon_ratio": list(config.beacon_ratio),
        "beacon_ratio_mix": config.beacon_ratio_mix,
        "trained_positions": config.max_position_embeddings,
        **({"note": stored["model_note"]} if "model_note" in stored else {}),
    }


def describe_memory(path: Path) -> dict:
    """Describe a memory file; needs no model."""
    state = read_state(path)
    ratios = state["window_ratios"]
    return {
        "kind": "video memory",
        "path": str(path),
        "frames": state["frames"],
        "from_second": _rounded(state["first_second"]),
        "to_second": _rounded(state["last_second"]),
        "cached_positions": state["cached_positions"],
        "windows": len(ratios),
        "ratios": sorted(set(ratios)) or state["ratios"],
        "pending_tokens": state["pending_tokens"],
        "prefix_tokens": len(state["prefix_ids"]),
        "bytes": state["bytes"],
        **{f"source_{key}": value for key, value in state["source"].items()},
        **{f"model_{key}": value for key, value in state["fingerprint"].items()},
    }


def describe_video(path: Path) -> dict:
    """What a video file holds."""
    info = probe_video(str(path))
    return {
        "kind": "video",
        "path": info.path,
        "frames": info.num_frames,
        "seconds": round(info.duration, 3),
        "fps": round(info.fps, 3),
        "size": f"{info.width} x {info.height}",
        "rotation": info.rotation,
        "codec": info.codec,
        **({} if info.keyframe_seconds is None else {"keyframe_seconds": round(info.keyframe_seconds, 2)}),
        "decoder": "pyav, in parts" if info.keyframes is not None else "pyav, from the start",
        "auto_decoder": _auto_decoder(info),
        **({"odd": "; ".join(info.oddities)} if info.oddities else {}),
        **({"damage": info.damage} if info.damage else {}),
    }


def _auto_decoder(info: VideoInfo) -> str:
    """What the backend `auto` would take for a long part of this file."""
    gpu = find_gpu(info, info.keyframes is not None, None, VideoXLImageProcessor().side, False, asked=False)
    return "nvdec and pyav" if gpu.refusal is None else f"pyav ({gpu.refusal})"


def _rounded(seconds: float | None) -> float | None:
    """Rounded seconds; None for an unknown time, since JSON has no NaN."""
    return None if seconds is None or math.isnan(seconds) else round(seconds, 3)


def notes_about(config: VideoXLConfig, memory: VideoMemory | None) -> list[str]:
    """See `VideoXL.notes`."""
    said = getattr(config, "model_note", None)
    notes = [said] if said else []
    if memory is not None:
        trained, reached = config.max_position_embeddings, memory.summary_length + config.beacon_window
        if reached > trained:
            notes.append(f"positions reach {reached}, the model was trained to {trained}; see `videoxl estimate`")
    return notes
