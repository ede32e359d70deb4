"""Weights as integers: to a channel, and in blocks. Arrays in, arrays out.

A channel of weights w is kept as integers q = round(w / s) with s = max|w| / (2^(bits-1) - 1), so that w is about s * q
and zero is exact: the symmetric form of ONNX's QuantizeLinear, without its -2^(bits-1). Rounding is to even. A channel of
zeros has s = 1.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Integers = NDArray[Any]


def largest(bits: int) -> int:
    """The largest integer of a symmetric range.

    >>> largest(8), largest(7)
    (127, 63)
    """
    return int(2 ** (bits - 1)) - 1


def scales(weight: Floats, axis: int, bits: int) -> Floats:
    """A scale for each channel along an axis: (channels,)."""
    others = tuple(dim for dim in range(weight.ndim) if dim != axis % weight.ndim)
    return scale_of(np.abs(weight).max(axis=others, initial=0.0), largest(bits))


def scale_of(extreme: Floats | np.floating[Any], integer: float) -> Floats:
    """What one step is worth when the integer stands for the extreme; 1 where nothing is but zeros."""
    found = np.asarray(extreme, np.float32) / np.float32(integer)
    # where the division underflows there is nothing to tell from zero either
    return np.where(found > 0, found, np.float32(1)).astype(np.float32)


def storable(scale: Floats, dtype: Any) -> Floats:
    """Scales that a type of floats holds exactly, for integers that are made with what is stored: never 0, and the next
    above where rounding down, among the type's least numbers, would cut off more than half a step of 8 bits."""
    limits = ml_dtypes.finfo(dtype)  # type: ignore[no-untyped-call]  # ml_dtypes has no types for it
    ends = np.float32(limits.smallest_subnormal), np.float32(limits.max)
    found = np.clip(scale, *ends).astype(dtype)
    above = np.nextafter(found, np.asarray(limits.max, dtype))
    cut = found.astype(np.float32) * np.float32(127.5 / 127) < np.clip(scale, *ends)
    return np.asarray(np.where(cut, above, found), np.float32)


def rounded(weight: Floats, scale: Floats, axis: int, bits: int) -> NDArray[np.int8]:
    """The integers of a weight by its channels' scales."""
    along = [1] * weight.ndim
    along[axis] = -1
    found = np.rint(weight / scale.reshape(along))
    clipped: NDArray[np.int8] = np.clip(found, -largest(bits), largest(bits)).astype(np.int8)
    return clipped


def biased(integers: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Signed integers as unsigned ones whose zero is 128."""
    return (integers.view(np.uint8) ^ 0x80).astype(np.uint8)


def activation_scale(low: float, high: float, *, signed: bool) -> tuple[np.float32, np.integer[Any]]:
    """Scale and zero point of what lies between two values.

    Unsigned: s = (high - low) / 255 with zero inside, zero point round(-low / s). Signed, as TensorRT wants it: the zero
    point is 0 and s = max(|low|, |high|) / 127. Raises ValueError for bounds that are no numbers, or further apart than
    float32 reaches.
    """
    span = max(abs(low), abs(high)) if signed else max(high, 0.0) - min(low, 0.0)
    if not (np.isfinite(low) and np.isfinite(high) and span <= float(np.finfo(np.float32).max)):
        raise ValueError(f"its values reach from {low} to {high}")
    if signed:
        return np.float32(scale_of(np.float32(span), 127)), np.int8(0)
    scale = np.float32(scale_of(np.float32(span), 255))
    return scale, np.uint8(np.clip(np.rint(-min(low, 0.0) / scale), 0, 255))


def blocks(weight: Floats, size: int, bits: int, symmetric: bool) -> tuple[Integers, Floats, Integers]:
    """A matrix (inputs, outputs) in blocks of `size` inputs, as com.microsoft's MatMulNBits keeps it.

    Integers (outputs, blocks, size), unsigned; scales (outputs, blocks); zero points (outputs, blocks). Symmetric blocks
    have their zero in the middle, and the value of largest magnitude, whatever its sign, falls on integer 0; the others
    reach from the least to the greatest value, zero among them. Inputs are filled up with zeros to whole blocks.
    """
    top = 2**bits - 1
    grouped = _grouped(weight, size)
    if symmetric:
        middle = 2 ** (bits - 1)
        at = np.abs(grouped).argmax(axis=2, keepdims=True)
        extreme = np.take_along_axis(grouped, at, axis=2)[..., 0]
        scale = np.where(extreme == 0, np.float32(1), extreme / np.float32(-middle)).astype(np.float32)
        scale = np.where(scale == 0, np.float32(1), scale)
        zeros = np.full(scale.shape, middle, np.uint8)
    else:
        low, high = grouped.min(axis=2).clip(max=0), grouped.max(axis=2).clip(min=0)
        scale = scale_of(high - low, top)
        zeros = np.clip(np.rint(-low / scale), 0, top).astype(np.uint8)
    found = np.rint(grouped / scale[..., None]) + zeros[..., None]
    return np.clip(found, 0, top).astype(np.uint8), scale, zeros


def _grouped(weight: Floats, size: int) -> Floats:
    """(inputs, outputs) as (outputs, blocks, size)."""
    inputs, outputs = weight.shape
    filled = np.zeros((outputs, -(-inputs // size) * size), np.float32)
    filled[:, :inputs] = weight.T
    return filled.reshape(outputs, -1, size)


def packed(integers: Integers, bits: int) -> NDArray[np.uint8]:
    """Integers of 4 bits two to a byte along the last axis, the first in the low half; of 8 bits as they are."""
    if bits == 8:
        return integers.astype(np.uint8)
    if integers.shape[-1] % 2:
        integers = np.concatenate([integers, np.zeros_like(integers[..., :1])], axis=-1)
    low, high = integers[..., 0::2].astype(np.uint8), integers[..., 1::2].astype(np.uint8)
    return np.asarray((low & 15) | (high << 4), np.uint8)
