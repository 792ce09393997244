"""The interface of vision towers: pixels in, patch features out.

Parameters keep the names of the published checkpoints (`model.vision_tower.vision_tower.*`).

Shape letters: F frames or views, P patches in raster order (24 x 24 for ViT-L/14 at 336), C channels of the tower.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from videoxl.cost.shapes import TowerShape
from videoxl.errors import ConfigError
from videoxl.media.pixels import VideoXLImageProcessor
from videoxl.model.configuration import VideoXLConfig
from videoxl.utils.registry import Registry


class VisionTower(nn.Module, ABC):
    """A vision tower, run only up to the selected layer.

    `mm_vision_tower` names one as `SCHEME:NAME`, where the scheme is what a subclass was registered under; a name
    without a known scheme is CLIP's. To add one, register a subclass: `@TOWERS.register("mine")`.

    Attributes:
        hidden_size: C. image_size: side S of its square input. num_patches: P.
        has_own_files: whether a folder of its own can hold its configuration and weights.
    """

    hidden_size: int
    image_size: int
    num_patches: int
    has_own_files: ClassVar[bool] = False

    @classmethod
    @abstractmethod
    def build(cls, config: VideoXLConfig) -> VisionTower:
        """The tower that a configuration names, with random weights. Raises `ConfigError`, `CheckpointError`."""

    @abstractmethod
    def forward(self, pixels: Tensor) -> Tensor:
        """pixels [F, 3, S, S], any float dtype -> features [F, P, C] in the tower's dtype, class token dropped."""

    @abstractmethod
    def modules_run(self) -> list[nn.Module]:
        """The modules that a pass goes through; those after the selected layer are not among them."""

    @classmethod
    def complete(cls, config: VideoXLConfig, checkpoint: str | Path | None = None) -> None:
        """Make a configuration self-contained while the checkpoint's location is known."""

    @classmethod
    def shape(cls, config: VideoXLConfig) -> TowerShape | None:
        """Sizes for the estimate of cost; None where they are not known."""
        return None

    def load_weights(self, folder: Path) -> None:
        """Load the weights in the tower's folder, for training from a language model. Raises `ConfigError`."""
        raise ConfigError(f"a {type(self).__name__} has no folder of its own; its weights come with a checkpoint")

    def image_processor(self) -> VideoXLImageProcessor:
        """The preprocessing of its input, where no file says otherwise."""
        return VideoXLImageProcessor(self.image_size)

    def idle_parameters(self) -> list[str]:
        """Names, within the tower, of parameters that no pass reaches."""
        reached = {id(parameter) for module in self.modules_run() for parameter in module.parameters()}
        return [name for name, parameter in self.named_parameters() if id(parameter) not in reached]

    def _a_parameter(self) -> nn.Parameter:
        """Found through `parameters()` of a module that runs: access to a weight by name makes ZeRO-3 gather it."""
        return next(parameter for module in self.modules_run() for parameter in module.parameters())

    @property
    def dtype(self) -> torch.dtype:
        return self._a_parameter().dtype

    @property
    def device(self) -> torch.device:
        return self._a_parameter().device


CLIP = "clip"
TOWERS: Registry[type[VisionTower]] = Registry(
    "vision tower",
    "videoxl.vision_towers",
    {
        CLIP: "videoxl.model.towers.clip:CLIPVisionTower",
        "open_clip_hub": "videoxl.model.towers.open_clip:OpenCLIPVisionTower",
    },
)


def tower_class(config: VideoXLConfig) -> type[VisionTower] | None:
    """The class of the tower that a configuration names; None where it names none (a bare language model)."""
    name = config.mm_vision_tower
    if name is None and config.mm_vision_config is None:
        return None
    scheme = (name or "").partition(":")[0] if ":" in (name or "") else CLIP
    return TOWERS.get(scheme if scheme in TOWERS.names() else CLIP)


def build_vision_tower(config: VideoXLConfig) -> VisionTower | None:
    """The tower that a configuration names, with random weights; None where it names none."""
    found = tower_class(config)
    return None if found is None else found.build(config)


def tower_shape(config: VideoXLConfig) -> TowerShape | None:
    """Sizes of the tower that a configuration names; None where there is none or they are not known."""
    found = tower_class(config)
    return None if found is None else found.shape(config)


def check_select_layer(select_layer: int, layers: int) -> int:
    """How many layers run up to hidden state `select_layer`. Raises `ConfigError` if there is none."""
    if not -(layers + 1) <= select_layer <= layers:
        raise ConfigError(f"mm_vision_select_layer is {select_layer}; the tower has {layers} layers")
    return select_layer if select_layer >= 0 else layers + 1 + select_layer
