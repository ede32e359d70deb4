"""A large picture through an autoencoder in overlapping tiles, whose size alone bounds the memory.

Two ways to lay them out and to blend them:

    "diffusers"  tiles begin every `tile - overlap` from the left, the last as small as what is left; over the overlap the
                 next tile's share rises linearly from 0, first downwards, then to the right. As in diffusers' `AutoencoderKL`.
    "even"       all tiles are whole, spread evenly; a pixel is the mean of its tiles, each weighted by how far the pixel lies
                 inside of it: w = min(1, (d + 1/2) / overlap)^3 for both axes, multiplied. The power all but leaves out what
                 lies near a tile's border, where zeros stand for its neighbours: with a whole picture's normalisation a
                 tiny VAE's tiles are 51 dB from it where the linear blend is at 36.

A tile's normalisation sees that tile alone, so that no blend can give the whole decoder's picture: numbers stand in the tests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from ..errors import InputError
from .common import Array, check_count, check_number

BLENDS = ("even", "diffusers")
POWER = 3
Run = Callable[[Array], Array]
"""An autoencoder's half: (1, channels, height, width) in, other sides out by one factor."""


@dataclass(frozen=True)
class Tiling:
    """Tiles of `tile` latents to a side, of which a share `overlap` lies over the next one."""

    tile: int
    overlap: float = 0.25
    blend: str = "diffusers"

    def __post_init__(self) -> None:
        check_count("tile", self.tile)
        if not 0 <= check_number("overlap", self.overlap) <= 0.5:
            raise InputError(f"overlap={self.overlap} must be a share of a tile, from 0 to 0.5")
        if self.blend not in BLENDS:
            raise InputError(f"unknown blend {self.blend!r}; available: {', '.join(BLENDS)}")

    @property
    def step(self) -> int:
        """Latents from the beginning of a tile to that of the next."""
        return max(1, int(self.tile * (1 - self.overlap)))

    def splits(self, height: int, width: int) -> bool:
        """Whether so many latents are more than one tile."""
        return height > self.tile or width > self.tile

    def apply(self, run: Run, array: Array, unit: int, factor: Fraction) -> Array:
        """`run` over the tiles of an array (1, channels, height, width), of which `unit` to a side are one latent and which
        grows by `factor`: (1, channels, height * factor, width * factor)."""
        return (_as_diffusers if self.blend == "diffusers" else _evenly)(self, run, array, unit, factor)


def _as_diffusers(how: Tiling, run: Run, array: Array, unit: int, factor: Fraction) -> Array:
    """Row by row; of a row that is finished only what the next one blends with is kept."""
    height, width = array.shape[2:]
    side, step = how.tile * unit, how.step * unit
    extent, kept = int(int(side * factor) * how.overlap), int(step * factor)
    out: Array | None = None
    above: list[Array] = []
    for y in range(0, height, step):
        row: list[Array] = []
        for x in range(0, width, step):
            tile = np.array(run(array[:, :, y : y + side, x : x + side]))
            if above:
                _fade(above[len(row)], tile, extent, axis=2)
            if row:
                _fade(row[-1], tile, extent, axis=3)
            if out is None:
                out = np.zeros((*tile.shape[:2], int(height * factor), int(width * factor)), tile.dtype)
            place = out[:, :, int(y * factor) :, int(x * factor) :][:, :, :kept, :kept]
            place[...] = tile[:, :, : place.shape[2], : place.shape[3]]
            row.append(tile)
        above = row
    assert out is not None
    return out


def _fade(before: Array, tile: Array, extent: int, axis: int) -> None:
    """Blend the beginning of a tile, in place, with the end of the one before it."""
    extent = min(extent, before.shape[axis], tile.shape[axis])
    if not extent:
        return
    shape = [1] * tile.ndim
    shape[axis] = extent
    share = (np.arange(extent, dtype=np.float32) / np.float32(extent)).reshape(shape)
    last, first = [slice(None)] * tile.ndim, [slice(None)] * tile.ndim
    last[axis], first[axis] = slice(before.shape[axis] - extent, None), slice(0, extent)
    tile[tuple(first)] = before[tuple(last)] * (1 - share) + tile[tuple(first)] * share


def _evenly(how: Tiling, run: Run, array: Array, unit: int, factor: Fraction) -> Array:
    height, width = (side // unit for side in array.shape[2:])
    whole = [int(side * factor) for side in array.shape[2:]]
    total: Array | None = None
    weights = np.zeros(whole, np.float32)
    for y, rows in _spread(height, how):
        for x, columns in _spread(width, how):
            part = array[:, :, y * unit : (y + rows) * unit, x * unit : (x + columns) * unit]
            tile = run(part)
            if total is None:
                total = np.zeros((*tile.shape[:2], *whole), np.float32)
            overlap = (how.tile - how.step) * unit * factor
            weight = np.outer(*(_ramp(side, float(overlap)) for side in tile.shape[2:]))
            top, left = int(y * unit * factor), int(x * unit * factor)
            place = np.s_[top : top + tile.shape[2], left : left + tile.shape[3]]
            total[:, :, *place] += tile * weight
            weights[place] += weight
    assert total is not None
    total /= weights
    return total


def _spread(size: int, how: Tiling) -> Iterator[tuple[int, int]]:
    """Where tiles begin along an axis, and their length: whole ones with equal gaps, overlapping at least as asked."""
    if size <= how.tile:
        yield 0, size
        return
    count = -(-(size - how.tile) // how.step) + 1
    for i in range(count):
        yield round(i * (size - how.tile) / (count - 1)), how.tile


def _ramp(size: int, overlap: float) -> Array:
    """How much each of so many pixels counts: less towards both ends. Where a tile has no neighbour, its weight is divided
    by itself and counts for one."""
    distance = np.minimum(np.arange(size), np.arange(size)[::-1]) + np.float32(0.5)
    ramp: Array = np.minimum(np.float32(1), distance / np.float32(max(overlap, 1))) ** POWER
    return ramp.astype(np.float32)
