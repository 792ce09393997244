"""CLIP's vision tower, as transformers has it.

Shape letters: F frames or views, P patches, C channels.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from videoxl.cost.shapes import TowerShape
from videoxl.errors import CheckpointError, ConfigError
from videoxl.kernels import can_run
from videoxl.model.configuration import VideoXLConfig
from videoxl.model.towers.base import VisionTower, check_select_layer

# OpenAI's ViT-L/14 trained at 336 pixels, under the names that checkpoints give it.
_VIT_L_336 = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
    "projection_dim": 768,
}
_KNOWN_TOWERS: dict[str, dict[str, Any]] = {"clip-vit-large-patch14-336": _VIT_L_336}


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x), on the tower's largest activations: one pass over them if a kernel can run."""

    def forward(self, x: Tensor) -> Tensor:
        if can_run(x, with_gradients=True):
            from videoxl.kernels.activations import quick_gelu

            return quick_gelu(x)
        return x * torch.sigmoid(1.702 * x)


class CLIPVisionTower(VisionTower):
    """transformers' CLIP encoder, run only up to the selected layer.

    Args:
        config: the tower's own configuration.
        select_layer: index into the hidden states as transformers counts them (-2: all layers but the last).
    """

    has_own_files = True

    def __init__(self, config: CLIPVisionConfig, select_layer: int = -2):
        super().__init__()
        self.config = config
        self.num_layers_run = check_select_layer(select_layer, config.num_hidden_layers)
        # A bare container, so that parameter names keep the `vision_model.` part that transformers 5 dropped.
        self.vision_tower = nn.Module()
        self.vision_tower.vision_model = CLIPVisionModel(config)
        self.hidden_size = config.hidden_size
        self.image_size = _square(config.image_size)
        self.num_patches = (self.image_size // _square(config.patch_size)) ** 2
        if config.hidden_act == "quick_gelu":
            for layer in self._clip.encoder.layers:
                layer.mlp.activation_fn = QuickGELU()

    @property
    def _clip(self) -> Any:
        return self.vision_tower.vision_model

    @classmethod
    def build(cls, config: VideoXLConfig) -> CLIPVisionTower:
        return cls(resolve_vision_config(config), config.mm_vision_select_layer)

    @classmethod
    def complete(cls, config: VideoXLConfig, checkpoint: str | Path | None = None) -> None:
        if config.mm_vision_config is None:
            found = resolve_vision_config(config, checkpoint)
            config.mm_vision_config = found.to_diff_dict()

    @classmethod
    def shape(cls, config: VideoXLConfig) -> TowerShape:
        clip = resolve_vision_config(config)
        width, inner = clip.hidden_size, clip.intermediate_size
        side, patch = _square(clip.image_size), _square(clip.patch_size)
        patches = (side // patch) ** 2
        embeddings = width + clip.num_channels * patch**2 * width + (patches + 1) * width
        layer = 4 * (width * width + width) + 2 * width * inner + inner + width + 4 * width
        return TowerShape(
            width=width,
            layers=clip.num_hidden_layers,
            layers_run=check_select_layer(config.mm_vision_select_layer, clip.num_hidden_layers),
            intermediate_size=inner,
            image_size=side,
            patches=patches,
            parameters=embeddings + clip.num_hidden_layers * layer + 4 * width,
        )

    def modules_run(self) -> list[nn.Module]:
        clip = self._clip
        return [clip.embeddings, clip.pre_layrnorm, *clip.encoder.layers[: self.num_layers_run]]

    def load_weights(self, folder: Path) -> None:
        source = CLIPVisionModel.from_pretrained(folder, dtype=self.dtype)
        self._clip.load_state_dict(source.state_dict())

    def forward(self, pixels: Tensor) -> Tensor:
        clip = self._clip
        hidden = clip.pre_layrnorm(clip.embeddings(pixels.to(self.device, self.dtype)))
        for layer in clip.encoder.layers[: self.num_layers_run]:
            hidden = layer(hidden, None)
        return hidden[:, 1:]  # `mm_vision_select_feature = patch`: without the class token


def _square(size: int | Sequence[int] | None) -> int:
    """One side of a square that transformers' configuration may give as a pair."""
    sides = [size] if isinstance(size, int) else list(size or [])
    if not sides or len(set(sides)) > 1:
        raise ConfigError(f"the vision tower's size is {size}; a square one is needed: one number")
    return sides[0]


def resolve_vision_config(config: VideoXLConfig, checkpoint: str | Path | None = None) -> CLIPVisionConfig:
    """Find the tower's configuration.

    It may be stored in the checkpoint itself; else `mm_vision_tower` is tried, in this order, as a local path, the
    name of a folder in or beside the checkpoint, and the name of a known architecture. It is not looked up on the hub.

    Args:
        checkpoint: folder of the checkpoint; None: where `config` was loaded from.

    Raises:
        CheckpointError: the tower's configuration is in none of these places.
    """
    if config.mm_vision_config is not None:
        return CLIPVisionConfig(**config.mm_vision_config)
    name = config.mm_vision_tower or ""
    folder = find_tower_folder(config, checkpoint)
    if folder is not None:
        return _read_folder(folder)
    known = _KNOWN_TOWERS.get(Path(name).name)
    if known is not None:
        return CLIPVisionConfig(**known)
    raise CheckpointError(
        f"vision tower {name!r}: no such folder here or beside the checkpoint, and not one of the known architectures "
        f"({', '.join(_KNOWN_TOWERS)}). Put the tower's folder beside the checkpoint, or its configuration under "
        "'mm_vision_config' in config.json"
    )


def _read_folder(folder: Path) -> CLIPVisionConfig:
    try:
        kind = json.loads((folder / "config.json").read_text()).get("model_type")
        if kind not in ("clip", "clip_vision_model"):
            raise CheckpointError(f"{folder} holds a {kind!r} model; a CLIP vision tower is needed")
        return CLIPVisionConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, AttributeError, TypeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"the vision tower's configuration in {folder} cannot be read: {error}") from error


def find_tower_folder(config: VideoXLConfig, checkpoint: str | Path | None = None) -> Path | None:
    """The local folder of the tower: its path as stored, or a folder of that name in or beside the checkpoint."""
    if not config.mm_vision_tower:
        return None
    stored = Path(config.mm_vision_tower)
    candidates = [stored]
    checkpoint = checkpoint or config.name_or_path
    if checkpoint:
        folder = Path(checkpoint).resolve()
        candidates += [folder / stored.name, folder.parent / stored.name]
    return next((path for path in candidates if (path / "config.json").is_file()), None)
