"""What another package would bring: a compressor, a vision tower and a video decoder, by registration alone."""

from __future__ import annotations

from collections.abc import Sequence

import av
from torch import Tensor, nn

from videoxl.compression import COMPRESSORS, TokenReducer, Window
from videoxl.cost.shapes import TowerShape
from videoxl.media.decoders import DECODERS, VideoDecoder
from videoxl.media.info import VideoIndex
from videoxl.model.configuration import VideoXLConfig
from videoxl.model.towers import TOWERS, VisionTower


@COMPRESSORS.register("neighbours")
class Neighbours(TokenReducer):
    """Every token's mean with its neighbour, whatever the ratio: half as many positions, for ratio 2 alone."""

    name = "neighbours"
    fixed_ratio = 2

    def reduce(self, tokens: Tensor, window: Window) -> Tensor:
        return tokens.unflatten(1, (-1, 2)).mean(dim=2)


@TOWERS.register("patches")
class PatchTower(VisionTower):
    """`patches:SIZE`: pixels of each patch through one product; no attention at all."""

    patch = 14

    def __init__(self, image_size: int, width: int):
        super().__init__()
        self.image_size, self.hidden_size = image_size, width
        self.num_patches = (image_size // self.patch) ** 2
        self.vision_tower = nn.Linear(3 * self.patch**2, width)

    @classmethod
    def build(cls, config: VideoXLConfig) -> PatchTower:
        return cls(int(config.mm_vision_tower.partition(":")[2]), config.mm_hidden_size)

    @classmethod
    def shape(cls, config: VideoXLConfig) -> TowerShape:
        tower = cls.build(config)
        number = sum(parameter.numel() for parameter in tower.parameters())
        return TowerShape(tower.hidden_size, 1, 1, 0, tower.image_size, tower.num_patches, number)

    def forward(self, pixels: Tensor) -> Tensor:
        patches = nn.functional.unfold(pixels.to(self.device, self.dtype), self.patch, stride=self.patch)
        return self.vision_tower(patches.transpose(1, 2))

    def modules_run(self) -> list[nn.Module]:
        return [self.vision_tower]


@DECODERS.register("upside_down")
class UpsideDown(VideoDecoder):
    """PyAV from the first frame on, and every frame turned over."""

    name = "upside_down"

    def frames(self, index: VideoIndex, wanted: Sequence[int], side: int | None = None):
        asked = set(wanted)
        with av.open(index.info.path) as container:
            for number, frame in enumerate(container.decode(video=0)):
                if number in asked:
                    yield number, frame.to_ndarray(format="rgb24")[::-1].copy()
