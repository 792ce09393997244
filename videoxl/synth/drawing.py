"""Describes frames by numbers, and draws them as pixels.

A frame is a background (two colours mixed by a gradient, waves, rings and grain) under a few glyphs, all of it in one
vector of `WIDTH` numbers. One function draws any number of them on any device, so
frames streamed to a GPU and frames written to a file are the same.

Places run from -1 to 1, x to the right, y downwards; colours from 0 to 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from videoxl.synth.glyphs import SIDE, glyph_masks, grain
from videoxl.utils.transfer import send

BACKGROUND = (
    "red0", "green0", "blue0", "red1", "green1", "blue1",  # the two colours
    "slope_x", "slope_y",  # of the gradient between them
    "wave", "wave_x", "wave_y", "wave_phase",  # strength, waves across the picture, radians
    "rings", "ring_number", "ring_x", "ring_y", "ring_phase",
    "grain", "grain_cells", "grain_x", "grain_y",  # strength, cells across the picture, which part of the noise
    "light",  # factor on everything, for flashes
)  # fmt: skip
GLYPH = ("glyph", "red", "green", "blue", "opacity", "x", "y", "half_width", "half_height", "angle")
SLOTS = 9
"""Glyphs a frame can have, drawn in order."""
WIDTH = len(BACKGROUND) + SLOTS * len(GLYPH)

B = {name: place for place, name in enumerate(BACKGROUND)}
G = {name: place for place, name in enumerate(GLYPH)}
SCALE = 2  # upscaling of the drawn picture, in each direction
FRAMES_AT_ONCE = {"cpu": 16, "cuda": 256}


def blank(num_frames: int) -> np.ndarray:
    """Black frames without glyphs, [F, WIDTH] float32."""
    numbers = np.zeros((num_frames, WIDTH), dtype=np.float32)
    numbers[:, B["light"]] = 1.0
    return numbers


def glyphs_of(numbers: np.ndarray) -> np.ndarray:
    """The glyphs' part as a view, [F, SLOTS, len(GLYPH)]."""
    return numbers[:, len(BACKGROUND) :].reshape(len(numbers), SLOTS, len(GLYPH))


@torch.no_grad()
def draw(numbers: Tensor, side: int, device: torch.device | str = "cpu") -> Tensor:
    """Pixels of frames.

    Args:
        numbers: [F, WIDTH] float32, on the CPU.
        side: S, even.

    Returns:
        uint8 [F, S, S, 3] on `device`.
    """
    at_once = FRAMES_AT_ONCE.get(torch.device(device).type, 16)
    parts = [_draw(part, side // SCALE, device) for part in numbers.split(at_once)]
    frames = torch.cat(parts) if parts else torch.zeros(0, 3, side // SCALE, side // SCALE, dtype=torch.uint8)
    frames = frames.permute(0, 2, 3, 1)
    return frames.repeat_interleave(SCALE, dim=1).repeat_interleave(SCALE, dim=2)


@dataclass
class DrawnFrames:
    """Frames of several videos, not drawn yet; iterates over each video's numbers.

    Attributes:
        numbers: [N, WIDTH] float32, all videos one after the other. counts: frames of each. side: S.
    """

    numbers: Tensor
    counts: list[int]
    side: int

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.numbers.split(self.counts))

    def draw(self, device: torch.device) -> Tensor:
        """uint8 [N, S, S, 3]."""
        return draw(self.numbers, self.side, device)

    def chunks(self, num_frames: int) -> Iterator[DrawnFrames]:
        """The same frames, at most `num_frames` at a time."""
        for part in self.numbers.split(num_frames):
            yield DrawnFrames(part, [len(part)], self.side)


def _draw(numbers: Tensor, side: int, device: torch.device | str) -> Tensor:
    """uint8 [F, 3, side, side]."""
    background = send(numbers[:, : len(BACKGROUND)], device)
    line = (torch.arange(side, device=device) + 0.5) / side * 2 - 1
    x, y = line.view(1, 1, side), line.view(1, side, 1)
    mix = _mix(background, numbers, x, y).unsqueeze(1)
    first, second = background[:, 0:3, None, None], background[:, 3:6, None, None]
    canvas = torch.lerp(first.expand(-1, -1, side, side), second.expand(-1, -1, side, side), mix)
    _put_glyphs(canvas, numbers[:, len(BACKGROUND) :].view(len(numbers), SLOTS, len(GLYPH)), x, y)
    canvas.mul_(background[:, B["light"], None, None, None])
    return canvas.mul_(255).round_().clamp_(0, 255).to(torch.uint8)


def _mix(background: Tensor, numbers: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Share of the second colour at every place, [F, S, S]; effects that no frame has are skipped."""

    def value(name: str) -> Tensor:
        return background[:, B[name], None, None]

    def any_has(name: str) -> bool:
        return bool((numbers[:, B[name]] != 0).any())

    mix = 0.5 + value("slope_x") * x + value("slope_y") * y
    if any_has("wave"):
        turn = np.pi * (value("wave_x") * x + value("wave_y") * y) + value("wave_phase")
        mix = mix + value("wave") * torch.sin(turn)
    if any_has("rings"):
        radius = torch.hypot(x - value("ring_x"), y - value("ring_y"))
        mix = mix + value("rings") * torch.sin(np.pi * value("ring_number") * radius + value("ring_phase"))
    if any_has("grain"):
        cells = value("grain_cells") / 2
        column = ((x + 1) * cells + value("grain_x")).long() % SIDE
        row = ((y + 1) * cells + value("grain_y")).long() % SIDE
        mix = mix + value("grain") * _on(str(mix.device), grain)[row * SIDE + column]
    return mix.clamp_(0, 1)


def _put_glyphs(canvas: Tensor, glyphs: Tensor, x: Tensor, y: Tensor) -> None:
    """Draw glyphs [F, SLOTS, len(GLYPH)], on the CPU, into canvas [F, 3, S, S], in the order of slots.

    The masks of all glyphs are computed together in a few kernels, since launching many small ones would be slower.
    """
    slots, frames = (glyphs[:, :, G["opacity"]] > 0).T.nonzero(as_tuple=True)  # in the order of slots
    if not len(slots):
        return
    counts = slots.bincount(minlength=SLOTS).tolist()
    placed = send(glyphs[frames, slots], canvas.device)
    opacity = _opacity(placed, x, y).unsqueeze(1)
    colour = placed[:, G["red"] : G["blue"] + 1, None, None].expand(-1, -1, *canvas.shape[2:])
    each = (part.split(counts) for part in (send(frames, canvas.device), colour, opacity))
    for used, of_slot, strength in zip(*each):
        if len(used):
            canvas[used] = torch.lerp(canvas[used], of_slot, strength)


def _opacity(glyphs: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """How much of each place every glyph [U, len(GLYPH)] covers, [U, S, S]."""
    columns = glyphs.T[:, :, None, None]
    cos, sin = torch.cos(columns[G["angle"]]), torch.sin(columns[G["angle"]])
    dx, dy = x - columns[G["x"]], y - columns[G["y"]]
    u = (cos * dx + sin * dy) / columns[G["half_width"]]
    v = (cos * dy - sin * dx) / columns[G["half_height"]]
    inside = (u.abs() < 1) & (v.abs() < 1)
    column = ((u + 1) * (SIDE / 2)).long().clamp_(0, SIDE - 1)
    row = ((v + 1) * (SIDE / 2)).long().clamp_(0, SIDE - 1)
    place = (columns[G["glyph"]].long() * SIDE + row) * SIDE + column
    return _on(str(glyphs.device), glyph_masks)[place] * inside * columns[G["opacity"]]


@lru_cache(maxsize=8)
def _on(device: str, make: Callable[[], Tensor]) -> Tensor:
    """A table of pictures on a device, flat; copied there once."""
    return make().to(device).flatten()
