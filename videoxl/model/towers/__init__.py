"""Vision towers, one per file, behind `VisionTower`."""

from videoxl.model.towers.base import TOWERS, VisionTower, build_vision_tower, tower_class, tower_shape
from videoxl.model.towers.clip import find_tower_folder, resolve_vision_config

__all__ = [
    "TOWERS",
    "VisionTower",
    "build_vision_tower",
    "find_tower_folder",
    "resolve_vision_config",
    "tower_class",
    "tower_shape",
]
