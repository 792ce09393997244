"""How a frame is turned and mirrored to be shown: one of the eight operations of a display matrix."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # the decoder process has no torch
    from torch import Tensor


@dataclass(frozen=True)
class Orientation:
    """First mirrored left to right, where `mirrored`; then turned counterclockwise by `rotation` (0, 90, 180, 270)."""

    rotation: int = 0
    mirrored: bool = False

    @property
    def is_sideways(self) -> bool:
        """Whether width and height change places."""
        return self.rotation % 180 == 90

    def apply(self, frame: np.ndarray) -> np.ndarray:
        """[H, W, 3] as stored -> [H', W', 3] as shown."""
        if self.mirrored:
            frame = frame[:, ::-1]
        if self.rotation:
            frame = np.rot90(frame, self.rotation // 90)
        return np.ascontiguousarray(frame)

    def apply_to_tensor(self, frame: Tensor) -> Tensor:
        """`apply` of a tensor on any device."""
        if self.mirrored:
            frame = frame.flip(1)
        return frame.rot90(self.rotation // 90) if self.rotation else frame


# Signs of (a, b, c, d), which take a stored (x, y) to (a x + c y, b x + d y), y downwards.
_OPERATIONS = {
    (1, 0, 0, 1): Orientation(),
    (-1, 0, 0, 1): Orientation(0, True),
    (1, 0, 0, -1): Orientation(180, True),
    (-1, 0, 0, -1): Orientation(180),
    (0, 1, -1, 0): Orientation(270),
    (0, -1, 1, 0): Orientation(90),
    (0, 1, 1, 0): Orientation(90, True),
    (0, -1, -1, 0): Orientation(270, True),
}


def orientation_of(matrix: bytes | None) -> Orientation:
    """From FFmpeg's display matrix (nine int32); the nearest of the eight operations."""
    if matrix is None or len(matrix) < 36:
        return Orientation()
    a, b, _, c, d, *_ = struct.unpack("=9i", matrix[:36])
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return _OPERATIONS[1 if a >= 0 else -1, 0, 0, 1 if d >= 0 else -1]
    return _OPERATIONS[0, 1 if b >= 0 else -1, 1 if c >= 0 else -1, 0]


def frame_orientation(frame) -> Orientation:
    """Of a decoded PyAV frame."""
    for data in getattr(frame, "side_data", ()):
        if getattr(data.type, "name", "") == "DISPLAYMATRIX":
            return orientation_of(bytes(data))
    return Orientation()
