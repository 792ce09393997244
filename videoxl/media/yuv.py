"""8-bit 4:2:0 pixels to RGB in plain torch, equal to the bit to swscale's on x86 processors, on any device.

The arithmetic is that of FFmpeg's libswscale for this conversion without scaling (LGPL; followed here, not copied):
16-bit products of which the upper half is kept, and each chroma value for four pixels.

Shape letters: H height, W width.
"""

from __future__ import annotations

from functools import lru_cache

from torch import Tensor

# swscale's number of a matrix -> its coefficients, times 2**16: red from V, blue from U, green from U, green from V.
_COEFFICIENTS = {
    1: (117489, 138438, 13975, 34925),  # BT.709
    4: (104448, 132798, 24759, 53109),  # FCC
    5: (104597, 132201, 25675, 53279),  # BT.601
    7: (117579, 136230, 16907, 35559),  # SMPTE 240M
    9: (110013, 140363, 12277, 42626),  # BT.2020
}


def yuv420_to_rgb(luma: Tensor, chroma: Tensor, matrix: int, full_range: bool) -> Tensor:
    """NV12 to RGB.

    Args:
        luma: uint8 [H, W], H and W even. chroma: uint8 [H / 2, W / 2, 2], U and V.
        matrix: 1 (BT.709), 4 (FCC), 5 (BT.601), 7 (SMPTE 240M) or 9 (BT.2020).
        full_range: values from 0 to 255 instead of 16 to 235.

    Returns:
        uint8 [H, W, 3], a view of [3, H, W].
    """
    grey, red_v, blue_u, green_u, green_v, black = _factors(matrix, full_range)
    height, width = luma.shape
    y = (((luma.int() << 3) - black) * grey >> 16).view(height // 2, 2, width // 2, 2)
    u, v = ((chroma[..., plane].int() << 3) - 1024 for plane in (0, 1))
    parts = (v * red_v >> 16, (u * green_u >> 16) + (v * green_v >> 16), u * blue_u >> 16)
    rgb = luma.new_empty(3, height, width)
    for plane, part in zip(rgb, parts):
        plane.view(height // 2, 2, width // 2, 2).copy_((y + part[:, None, :, None]).clamp_(0, 255))
    return rgb.permute(1, 2, 0)


@lru_cache
def _factors(matrix: int, full_range: bool) -> tuple[int, int, int, int, int, int]:
    red_v, blue_u, green_u, green_v = _COEFFICIENTS[matrix]
    grey, black = 1 << 16, 0
    if full_range:
        red_v, blue_u, green_u, green_v = (each * 224 // 255 for each in (red_v, blue_u, green_u, green_v))
    else:
        grey, black = grey * 255 // 219, 128

    def rounded(value: int) -> int:
        return ((value << 13) + (1 << 15)) >> 16

    return rounded(grey), rounded(red_v), rounded(blue_u), rounded(-green_u), rounded(-green_v), black
