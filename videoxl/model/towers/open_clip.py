"""OpenCLIP vision towers (`mm_vision_tower = "open_clip_hub:ViT-..."`); needs the extra `open-clip`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from videoxl.errors import ConfigError, MissingDependencyError
from videoxl.model.configuration import VideoXLConfig
from videoxl.model.towers.base import VisionTower, check_select_layer


class OpenCLIPVisionTower(VisionTower):
    """The visual transformer of an OpenCLIP model, run only up to the selected layer.

    Weights come from the checkpoint (`vision_tower.*` are OpenCLIP's own names).

    Args:
        name: an architecture that OpenCLIP knows (`ViT-L-14-336`, ...), or `hf-hub:` and a hub id.
        select_layer: index into the hidden states, -2: all residual blocks but the last.
    """

    def __init__(self, name: str, select_layer: int = -2):
        super().__init__()
        try:
            import open_clip
        except ImportError as error:
            raise MissingDependencyError(
                f"vision tower 'open_clip_hub:{name}' needs OpenCLIP: pip install 'videoxl[open-clip]'"
            ) from error
        known = open_clip.list_models()
        if name not in known and not name.startswith("hf-hub:"):
            raise ConfigError(
                f"OpenCLIP has no model {name!r}; it has {', '.join(known[:5])}, ... ({len(known)} names)"
            )
        visual = open_clip.create_model(name, pretrained=None).visual
        if not isinstance(visual, open_clip.transformer.VisionTransformer):
            raise ConfigError(f"OpenCLIP model {name!r} has a {type(visual).__name__}; only plain ViT towers work here")
        visual.proj = None  # the projection to the text space is not used; removing it removes its parameter
        blocks = len(visual.transformer.resblocks)
        self.num_layers_run = check_select_layer(select_layer, blocks)
        self.vision_tower = visual
        self.hidden_size = visual.conv1.out_channels
        self.image_size = visual.image_size[0]
        self.num_patches = visual.grid_size[0] * visual.grid_size[1]

    @classmethod
    def build(cls, config: VideoXLConfig) -> OpenCLIPVisionTower:
        return cls((config.mm_vision_tower or "").partition(":")[2], config.mm_vision_select_layer)

    def modules_run(self) -> list[nn.Module]:
        visual = self.vision_tower
        return [visual.conv1, visual.ln_pre, *visual.transformer.resblocks[: self.num_layers_run]]

    def idle_parameters(self) -> list[str]:
        # The embeddings are parameters of the transformer itself, in no module that runs.
        return [name for name in super().idle_parameters() if not name.endswith("_embedding")]

    def forward(self, pixels: Tensor) -> Tensor:
        visual = self.vision_tower
        patches = visual.conv1(pixels.to(self.device, self.dtype)).flatten(2).transpose(1, 2)
        class_token = visual.class_embedding.to(patches.dtype).expand(patches.shape[0], 1, -1)
        hidden = torch.cat([class_token, patches], dim=1) + visual.positional_embedding.to(patches.dtype)
        hidden = visual.ln_pre(hidden)
        for block in visual.transformer.resblocks[: self.num_layers_run]:
            hidden = block(hidden)
        return hidden[:, 1:]
