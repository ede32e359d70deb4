"""The sizes that PixArt was trained at, one for each aspect ratio, and pictures of those sizes cut to the one asked for.

Chen et al. 2023, "PixArt-alpha" (arXiv 2310.00426), section 2.3, with the sizes of Podell et al. 2023 (SDXL), appendix I;
those of 2048 pixels are of Chen et al. 2024, "PixArt-Sigma" (arXiv 2403.04692).
"""

from __future__ import annotations

import numpy as np

from ..errors import InputError
from .common import Array

# (height, width) in sixteenths of the side of a square picture
_SMALLER = (
    "8x32 8x29 9x28 9x27 9x26 10x25 10x24 11x23 11x22 11x21 12x21 12x20 13x19 13x18 14x18 14x17 15x17 15x16 16x16 16x15 17x15 "
    "17x14 18x14 18x13 19x13 20x12 21x12 22x11 23x11 24x10 25x10 27x9 32x8"
)
_OF_2048 = (
    "8x32 8x31 8x30 8x29 9x28 9x27 9x26 10x25 10x24 11x23 11x22 11x21 12x21 12x20 13x19 13x18 14x18 14x17 15x17 15x16 16x16 "
    "16x15 17x15 17x14 18x14 18x13 19x13 20x12 21x12 22x11 23x11 24x10 25x10 26x9 27x9 28x9 29x8 30x8 31x8 32x8"
)
SIDES = {32: 256, 64: 512, 128: 1024, 256: 2048}  # of a square picture in pixels, by the config's sample_size


def trained_sizes(sample_size: int) -> list[tuple[int, int]]:
    """(height, width) in pixels, by rising height. Raises InputError for a model whose sizes nobody published."""
    if sample_size not in SIDES:
        raise InputError(
            f"use_resolution_binning: no sizes are known of a model whose sample_size is {sample_size}, but of "
            f"{', '.join(map(str, SIDES))}; use_resolution_binning=False takes the size as it is"
        )
    side = SIDES[sample_size]
    pairs = (pair.split("x") for pair in (_OF_2048 if side == 2048 else _SMALLER).split())
    return [(int(height) * side // 16, int(width) * side // 16) for height, width in pairs]


def nearest(height: int, width: int, sample_size: int) -> tuple[int, int]:
    """The trained size whose aspect ratio, in hundredths, is nearest to that of a picture; of two the lower."""
    return min(trained_sizes(sample_size), key=lambda size: abs(round(size[0] / size[1], 2) - height / width))


def cut_to(pictures: Array, size: tuple[int, int]) -> Array:
    """Pictures (batch, channels, height, width) enlarged or shrunk until they cover `size`, (height, width), and their middle.

    Bilinear between the pixels' centres, as torch's `interpolate` does without `align_corners`.
    """
    height, width = pictures.shape[2:]
    if (height, width) == size:
        return pictures
    ratio = max(size[0] / height, size[1] / width)
    rows, columns = int(height * ratio), int(width * ratio)
    covering = _stretched(_stretched(pictures, rows, 2), columns, 3)
    top, left = (rows - size[0]) // 2, (columns - size[1]) // 2
    return covering[:, :, top : top + size[0], left : left + size[1]]


def _stretched(pictures: Array, count: int, axis: int) -> Array:
    """Linear interpolation along one axis to so many pixels."""
    old = pictures.shape[axis]
    half = np.float32(0.5)  # all in float32, as torch computes the places
    places = np.maximum((np.arange(count, dtype=np.float32) + half) * np.float32(old / count) - half, 0)
    first = places.astype(np.int64)
    share = np.expand_dims(places - first.astype(np.float32), tuple(range(1, pictures.ndim - axis)))
    before, after = (np.take(pictures, np.minimum(at, old - 1), axis=axis) for at in (first, first + 1))
    stretched: Array = before + (after - before) * share
    return stretched
