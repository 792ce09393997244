"""What a video file holds, as plain values. Free of FFmpeg: a stream of frames carries it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from videoxl.media.orientation import Orientation


@dataclass
class VideoInfo:
    """What a file holds; n is its number of frames.

    Attributes:
        timestamps: [n] float64, seconds from the first frame, ascending.
        width, height: of a frame as it is shown: turned, and with square pixels.
        fps: average frames a second.
        rotation, mirrored: how decoded frames are turned to be shown; see `Orientation`.
        pixel_aspect: width of a stored pixel divided by its height.
        last_frame: seconds that the last frame is shown; None: as long as the average one.
        keyframes: [k] int64, numbers of the frames that can be decoded by themselves; None where they are not known.
        stored_width, stored_height: of a frame as it is stored.
        first_second: the time of the first frame in the file, which `timestamps` are counted from.
        pixel_format: FFmpeg's name of the stored pixels' form. matrix, full_range: how they become RGB; see `colour`.
        interlaced: whether the first frame is stored as two fields.
        damage: what is wrong with the file although part of it can be used; None where nothing is.
        oddities: what is unusual about the file, and what was done about it.
    """

    path: str
    timestamps: np.ndarray = field(repr=False)
    width: int
    height: int
    fps: float
    codec: str
    rotation: int = 0
    mirrored: bool = False
    pixel_aspect: float = 1.0
    last_frame: float | None = None
    keyframes: np.ndarray | None = field(default=None, repr=False)
    stored_width: int = 0
    stored_height: int = 0
    first_second: float = 0.0
    pixel_format: str = ""
    matrix: int = 5
    full_range: bool = False
    interlaced: bool = False
    damage: str | None = None
    oddities: tuple[str, ...] = ()

    @property
    def num_frames(self) -> int:
        return len(self.timestamps)

    @property
    def duration(self) -> float:
        """Seconds from the first frame's start to the last frame's end."""
        last = self.last_frame
        if last is None:
            last = 1 / self.fps if self.fps else 0.0
        return float(self.timestamps[-1]) + last

    @property
    def keyframe_seconds(self) -> float | None:
        """Average distance of keyframes; None where they are not known."""
        return None if self.keyframes is None else self.duration / max(len(self.keyframes), 1)

    @property
    def orientation(self) -> Orientation:
        return Orientation(self.rotation, self.mirrored)

    def stretch(self) -> tuple[float, float]:
        """(vertical, horizontal) factors from stored to square pixels, of a frame that is turned already."""
        return (self.pixel_aspect, 1.0) if self.orientation.is_sideways else (1.0, self.pixel_aspect)


@dataclass
class VideoIndex:
    """`info`, and the times of all frames and of keyframes in the stream's time base (int64, ascending).

    `timed` is false where frames cannot be found by their times: then `pts` are frame numbers, counted from the start.
    """

    info: VideoInfo
    timed: bool
    pts: np.ndarray
    keyframes: np.ndarray
