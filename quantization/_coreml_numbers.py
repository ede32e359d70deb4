"""The arithmetic of compressed Core ML weights: arrays in, integers with their scales or tables out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
BINS = 64  # of the histogram that a table starts from: with 16 to 128 the table ends nearest to the best one
ROUNDS = 1000  # at most; 10 to 100 were seen


def symmetric(weight: Array, bits: int, blocks: Sequence[int], dtype: Any) -> tuple[Array, Array]:
    """Integers (int8, in the weight's shape) and scales (`dtype`, one for each block), with weight ~ scale * integer.

        scale = max |w| / (2^(bits-1) - 1) over a block,    integer = round(w / scale)

    rounded to even, as coremltools' "linear_symmetric" does; but by the scale as it is stored, where coremltools 9.0
    divides by the unrounded one. `blocks` is the length of a block along each axis. A block of zeros has scale 1.
    """
    most = 2 ** (bits - 1) - 1
    split = [size for many, block in zip(weight.shape, blocks, strict=True) for size in (many // block, block)]
    parts = weight.astype(np.float32).reshape(split)
    inside = tuple(range(1, len(split), 2))
    greatest = np.abs(parts).max(inside, keepdims=True)
    scale = np.maximum(greatest / most, np.finfo(dtype).smallest_subnormal).astype(dtype)
    scale[greatest == 0] = 1
    integers = np.clip(np.round(parts / scale.astype(np.float32)), -most, most)
    return integers.astype(np.int8).reshape(weight.shape), scale.squeeze(inside)


def spread(values: Array, shape: Sequence[int]) -> Array:
    """One value for every block, repeated over an array of this shape."""
    for axis, (many, few) in enumerate(zip(shape, values.shape, strict=True)):
        values = np.repeat(values, many // few, axis)
    return values


def palette(weight: Array, bits: int, groups: int, dtype: Any) -> tuple[Array, Array]:
    """Indices (uint8, in the weight's shape) and tables (groups, 2^bits), one for each run of the first axis.

    k-means in one dimension: every value goes to the nearest entry, every entry to the mean of its values, until nothing
    moves. It starts where a fine quantizer would lie, with a density as the cube root of the values' (Panter and Dite,
    1951), so that nothing is random.
    """
    found = [_nearest(part, _table(part, 2**bits, dtype)) for part in np.split(weight, groups)]
    return np.concatenate([indices for indices, _ in found]), np.stack([table for _, table in found])


def _nearest(values: Array, table: Array) -> tuple[Array, Array]:
    middles = (table[1:].astype(np.float64) + table[:-1].astype(np.float64)) / 2
    return np.searchsorted(middles, values.astype(np.float64)).astype(np.uint8), table


def _table(values: Array, size: int, dtype: Any) -> Array:
    """The entries in order, as they are stored; what is too much repeats the last."""
    found, counts = np.unique(values.astype(np.float64), return_counts=True)
    if len(found) <= size:
        return np.pad(found, (0, size - len(found)), mode="edge").astype(dtype)
    mass = np.concatenate([[0.0], np.cumsum(counts)])
    moment = np.concatenate([[0.0], np.cumsum(counts * found)])
    table = _start(found, counts, size)
    for _ in range(ROUNDS):
        ends = [0, *np.searchsorted(found, (table[1:] + table[:-1]) / 2), len(found)]
        many, total = np.diff(mass[ends]), np.diff(moment[ends])
        moved = np.where(many > 0, total / np.maximum(many, 1), table)
        if np.array_equal(moved, table):
            break
        table = moved
    return table.astype(dtype)


def _start(found: Array, counts: Array, size: int) -> Array:
    density, edges = np.histogram(found, BINS, weights=counts)
    mass = np.concatenate([[0.0], np.cumsum(np.cbrt(density))])
    start: Array = np.interp((np.arange(size) + 0.5) / size, mass / mass[-1], edges)
    return start


def unpalette(indices: Array, tables: Array) -> Array:
    """The values that indices stand for, in float32."""
    parts = np.split(indices, len(tables))
    return np.concatenate([table.astype(np.float32)[part] for part, table in zip(parts, tables, strict=True)])


def psnr_db(weight: Array, stored: Array) -> float:
    """20 log10(max |w| / rms(w - stored)), in decibels; infinite for equal arrays."""
    wide = weight.astype(np.float64)
    error = float(np.sqrt(np.mean((wide - stored) ** 2)))
    return float(20 * np.log10(np.abs(wide).max() / error)) if error else float("inf")


def pack(values: Array, bits: int) -> Array:
    """Integers of fewer than 8 bits one behind the other, each from its lowest bit up, in bytes."""
    if bits == 8:
        return np.ascontiguousarray(values).view(np.uint8).ravel()
    single = np.unpackbits(values.astype(np.uint8).reshape(-1, 1), axis=1, count=bits, bitorder="little")
    return np.packbits(single.ravel(), bitorder="little")
