"""Features of a frozen tower, computed once and cached on disk.

If only the decoder is trained, decoding and encoding are most of the work of every epoch. One cache file holds the
features of one picture or video. Its path depends on the media file's path, size and time, on the chosen frames and on
the tower's weights.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from videoxl.errors import ArgumentError, VideoXLError
from videoxl.model.modeling import LlavaQwenForCausalLM
from videoxl.model.visual import chunk_frames
from videoxl.train.data.dataset import VideoXLDataset
from videoxl.utils.digest import digest, digest_all
from videoxl.utils.files import whole_file

_SAMPLED = 1024  # values of each weight that go into the tower's digest


class FeatureCache:
    """Stored features of one tower in one folder.

    Call it with a media path for its features [F, P, C] bfloat16, or None if they are not cached.
    """

    def __init__(self, folder: Path, model: LlavaQwenForCausalLM, rule: str):
        """Args:
        rule: text that identifies all else that features depend on (frame choice, views of a picture).

        Raises:
            ArgumentError: the tower is trained, so its features would change.
        """
        tower = model.model.vision_tower
        if any(parameter.requires_grad for parameter in tower.parameters()):
            raise ArgumentError("--cache_features needs a vision tower that is frozen; leave mm_vision_tower out")
        self.folder = folder
        self._name = digest(f"{rule} {_tower_digest(tower)}")

    def path_of(self, media: Path) -> Path:
        found = os.stat(media)
        name = f"{media.resolve()} {found.st_size} {found.st_mtime_ns}"
        return self.folder / self._name / f"{digest(name, digits=32)}.safetensors"

    def __call__(self, media: Path) -> Tensor | None:
        try:
            path = self.path_of(media)
        except OSError:
            return None
        return load_file(path)["features"] if path.is_file() else None

    @torch.no_grad()
    def fill(self, dataset: VideoXLDataset, model: LlavaQwenForCausalLM, device: torch.device, rank: int, world: int):
        """Encode this process's share of the media that are not cached yet; a repeated call resumes."""
        tower = model.model.vision_tower.to(device)
        todo = {path: record for record in dataset.records for path in record.media}
        mine = [item for item in list(todo.items())[rank::world] if self(item[0]) is None]
        for path, record in tqdm(mine, desc="features", unit="file", disable=rank > 0):
            try:
                frames, _ = dataset.read_media(record, path)
            except VideoXLError:
                continue  # the run will report and count it
            chunks = [
                tower(dataset.image_processor.normalize(part.to(device), tower.dtype)).to("cpu", torch.bfloat16)
                for part in frames.split(chunk_frames(model.model))
            ]
            place = self.path_of(path)
            place.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(place) as draft:
                save_file({"features": torch.cat(chunks)}, draft)


def _tower_digest(tower: torch.nn.Module) -> str:
    def parts() -> Iterator[bytes | str]:
        for name, weight in sorted(tower.state_dict().items()):
            yield name
            yield weight.flatten()[:: max(1, weight.numel() // _SAMPLED)].float().cpu().numpy().tobytes()

    return digest_all(parts(), 64)
