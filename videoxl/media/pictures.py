"""Pictures: opening them safely, and cutting one of any size into the views that the model reads."""

from __future__ import annotations

import ast
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from videoxl.errors import PictureError
from videoxl.media.resize import MAX_PIXELS

PICTURE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""A file in one of these formats is opened as a picture; any other file as a video."""

READABLE = (*PICTURE_FORMATS, "MPO", "JPEG2000", "ICO", "TGA", "AVIF")
"""Formats that are opened where a picture is asked for."""

_NEXT_JPEG = b"\xff\xd9\xff\xd8\xff"  # an end marker with a start marker right after it
_LOOKED_AT = 1 << 24  # bytes; the first picture of a video ends within them

_ORIENTATION = 0x0112  # EXIF tag
_SIDEWAYS = (5, 6, 7, 8)  # its values that swap width and height


def load_picture(source: str | Path | Image.Image | np.ndarray) -> Image.Image:
    """An RGB picture, turned upright by its EXIF orientation.

    Args:
        source: a path, a PIL picture, or a uint8 array [H, W, 3] or [H, W].

    Raises:
        PictureError: no such file, not a picture, or more than `MAX_PIXELS` pixels.
    """
    with _opened(source) as picture:
        return _in_8_bits(ImageOps.exif_transpose(picture)).convert("RGB")


def _in_8_bits(picture: Image.Image) -> Image.Image:
    """A greyscale picture of 16 bits, 32 bits or floats, scaled by its range; any other as it is.

    Floats are taken as 0 to 1, 0 to 255 or 0 to 65535, whichever holds them; else by their own range.
    """
    if picture.mode not in ("I", "F") and not picture.mode.startswith("I;"):
        return picture
    values = np.asarray(picture).astype(np.float64)
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    if picture.mode == "F":
        top = next((limit for limit in (1.0, 255.0, 65535.0) if high <= limit), high)
    else:
        top = 65535.0 if high <= 65535 else high
    bottom = min(low, 0.0)
    scaled = (np.nan_to_num(values, nan=bottom, posinf=top, neginf=bottom) - bottom) * (255 / max(top - bottom, 1e-300))
    return Image.fromarray(scaled.round().clip(0, 255).astype(np.uint8))


def picture_size(path: str | Path) -> tuple[int, int]:
    """(width, height) of a picture as it is shown, from its header only. Raises `PictureError` as `load_picture`."""
    with _opened(path) as picture:
        turned = picture.getexif().get(_ORIENTATION, 1) in _SIDEWAYS
        return picture.size[::-1] if turned else picture.size


def is_picture_file(path: Path) -> bool:
    """Whether a file is one picture: not animated, not a run of JPEGs (raw MJPEG). Nothing is decoded."""
    if not path.is_file():  # a pipe would block
        return False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=PICTURE_FORMATS) as picture:
                if picture.format == "JPEG":
                    return not _is_followed_by_jpeg(path)
                # A camera's MPO holds the same picture twice: for depth, or for two eyes.
                return picture.format == "MPO" or not getattr(picture, "is_animated", False)
    except Exception:  # Pillow raises many types for damaged files: such a file is no picture
        return False


def _is_followed_by_jpeg(path: Path) -> bool:
    with path.open("rb") as file:
        return _NEXT_JPEG in file.read(_LOOKED_AT)


@contextmanager
def _opened(source: str | Path | Image.Image | np.ndarray) -> Iterator[Image.Image]:
    try:
        if isinstance(source, np.ndarray):
            picture = Image.fromarray(source)
        elif isinstance(source, Image.Image):
            picture = source
        else:
            with warnings.catch_warnings():
                # The limit below is the one that counts.
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
                # By name: Pillow would hand EPS to Ghostscript, which runs programs.
                picture = Image.open(source, formats=READABLE)
        if picture.width * picture.height > MAX_PIXELS:
            raise PictureError(
                f"{_name(source)} has {picture.width} x {picture.height} pixels; at most {MAX_PIXELS} are opened "
                "(a decompression bomb?). Scale it down first"
            )
        yield picture
    except Image.DecompressionBombError as error:
        raise PictureError(f"{_name(source)}: {error}") from error
    except FileNotFoundError as error:
        raise PictureError(f"no such picture: {source}") from error
    except PictureError:
        raise
    except Exception as error:  # whatever a damaged file makes Pillow raise
        said = " ".join(str(error).split()) or type(error).__name__
        raise PictureError(f"{_name(source)} is not a picture that can be opened: {said}") from error


def _name(source) -> str:
    return str(source) if isinstance(source, (str, Path)) else f"a {type(source).__name__}"


def best_grid(width: int, height: int, grids: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The (width, height) among `grids` that keeps the most pixels of a picture, then wastes the least area."""

    def merit(grid: tuple[int, int]) -> tuple[int, int]:
        scale = min(grid[0] / width, grid[1] / height)
        effective = min(int(width * scale) * int(height * scale), width * height)
        return effective, effective - grid[0] * grid[1]

    return max(grids, key=merit)


def split_into_views(picture: Image.Image, grids: Sequence[tuple[int, int]], side: int) -> list[Image.Image]:
    """`anyres`: the whole picture at side x side, then the tiles of its best grid in raster order."""
    grid_width, grid_height = best_grid(*picture.size, grids)
    scale_x, scale_y = grid_width / picture.width, grid_height / picture.height
    if scale_x < scale_y:
        width, height = grid_width, min(math.ceil(picture.height * scale_x), grid_height)
    else:
        width, height = min(math.ceil(picture.width * scale_y), grid_width), grid_height
    canvas = Image.new("RGB", (grid_width, grid_height))
    canvas.paste(
        picture.resize((width, height), Image.Resampling.BICUBIC),
        ((grid_width - width) // 2, (grid_height - height) // 2),
    )
    tiles = [
        canvas.crop((x, y, x + side, y + side)) for y in range(0, grid_height, side) for x in range(0, grid_width, side)
    ]
    return [picture.resize((side, side), Image.Resampling.BICUBIC), *tiles]


def pad_to_square(picture: Image.Image, colour: tuple[int, int, int]) -> Image.Image:
    """Centre a picture on a square of `colour`."""
    side = max(picture.size)
    if picture.width == picture.height:
        return picture
    if side * side > MAX_PIXELS:
        raise PictureError(
            f"a picture of {picture.width} x {picture.height} pixels would become a square of {side * side:,}; at most "
            f"{MAX_PIXELS:,} are made. Crop it first"
        )
    canvas = Image.new("RGB", (side, side), colour)
    canvas.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return canvas


def parse_grids(pinpoints, side: int) -> list[tuple[int, int]]:
    """`image_grid_pinpoints` in any published form: a list, its repr, or `(1x1),...,(6x6)` in units of `side`.

    `published` means the list of the published training scripts; see `published_grids`. Raises `PictureError`.
    """
    if pinpoints == "published":
        return published_grids(side)
    if isinstance(pinpoints, str):
        if "x" in pinpoints:
            corners = [tuple(map(int, pair)) for pair in re.findall(r"\((\d+)x(\d+)\)", pinpoints)]
            (low_x, low_y), (high_x, high_y) = corners[0], corners[-1]
            pinpoints = [(x * side, y * side) for x in range(low_x, high_x + 1) for y in range(low_y, high_y + 1)]
        else:
            pinpoints = ast.literal_eval(pinpoints)
    grids = [tuple(pair) for pair in pinpoints or []]
    wrong = [grid for grid in grids if len(grid) != 2 or grid[0] % side or grid[1] % side or min(grid) < side]
    if wrong or not grids:
        raise PictureError(
            f"image_grid_pinpoints must be pairs of multiples of {side}; "
            + (f"it holds {wrong[0]}" if wrong else "it is empty")
        )
    return grids


def published_grids(side: int, most: int = 49) -> list[tuple[int, int]]:
    """Every grid of 2 to `most` tiles as (side * a, side * b), `a` in the outer loop: 200 grids for 49 tiles."""
    return [(side * a, side * b) for a in range(1, most + 1) for b in range(1, most // a + 1) if a * b >= 2]
