"""Cases of compressed weights, in the forms of iOS 16 and iOS 18, and of quantized activations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from coremltools.converters.mil import Builder as mb  # noqa: N813 - coremltools' own name for it
from coremltools.converters.mil.mil import types

from .mil_cases import RNG, Array, Case, X, normal, number, positive

BYTES = RNG.integers(0, 256, (6, 8)).astype(np.uint8)
ZEROS, SCALES = RNG.integers(0, 256, 6).astype(np.uint8), positive(6)
NIBBLES, TABLES = RNG.integers(0, 16, (6, 8)).astype(np.uint8), normal(3, 1, 16, 1)
SIGNED, BLOCKS, OFFSETS = RNG.integers(-8, 8, (6, 8)), positive(6, 2), RNG.integers(-8, 8, (6, 2))
BITS = RNG.integers(0, 2, (6, 8)).astype(np.uint8)
KEPT = normal(int(BITS.sum()))
THREES, VECTORS = RNG.integers(0, 8, (6, 8)).astype(np.uint8), normal(1, 1, 8, 2)
SIXES, SIX_TABLE = RNG.integers(0, 64, 13).astype(np.uint8), normal(64)


def weight(make: Callable[[], Any], expect: Any, *shape: int) -> Case:
    """A constant that is unpacked, added to zeros."""
    return Case(lambda x: mb.add(x=x, y=make()), (np.zeros(shape or (6, 8), np.float32),), lambda _: expect)


def packed(values: Array, bits: int) -> Array:
    """The bits of each value one after the other, lowest first."""
    text = "".join(format(value, f"0{bits}b")[::-1] for value in values.flatten())
    return np.packbits([int(bit) for bit in text], bitorder="little")


def typed(values: Array, dtype: str) -> Any:
    """Values marked as of fewer bits than NumPy knows."""
    return values.astype(getattr(types, f"np_{dtype}_dtype", dtype))


def sparse(values: Array) -> Array:
    out = np.zeros(BITS.shape, np.float32)
    out[BITS == 1] = values
    return out


COMPRESSED_16 = {
    "constexpr_affine_dequantize": weight(
        lambda: mb.constexpr_affine_dequantize(quantized_data=BYTES, zero_point=ZEROS, scale=SCALES, axis=0),
        SCALES[:, None] * (BYTES.astype(np.float32) - ZEROS[:, None]),
    ),
    "constexpr_affine_dequantize scalar": weight(
        lambda: mb.constexpr_affine_dequantize(
            quantized_data=BYTES.astype(np.int8), zero_point=np.int8(-3), scale=np.float32(0.2), axis=0
        ),
        0.2 * (BYTES.astype(np.int8).astype(np.float32) + 3),
    ),
    "constexpr_lut_to_dense packed": weight(
        lambda: mb.constexpr_lut_to_dense(indices=packed(SIXES, 6), lut=SIX_TABLE, shape=np.uint32([13])),
        SIX_TABLE[SIXES],
        13,
    ),
    "constexpr_sparse_to_dense packed": weight(
        lambda: mb.constexpr_sparse_to_dense(nonzero_data=KEPT, mask=packed(BITS, 1), shape=np.uint32([6, 8])),
        sparse(KEPT),
    ),
    "constexpr_cast": weight(
        lambda: mb.constexpr_cast(source_val=KEPT.astype(np.float16), output_dtype="fp32"),
        KEPT.astype(np.float16),
        len(KEPT),
    ),
}
COMPRESSED_18 = {
    "constexpr_blockwise_shift_scale": weight(
        lambda: mb.constexpr_blockwise_shift_scale(
            data=typed(SIGNED, "int4"), scale=BLOCKS, offset=typed(OFFSETS, "int4")
        ),
        BLOCKS.repeat(4, 1) * (SIGNED - OFFSETS.repeat(4, 1)),
    ),
    "constexpr_lut_to_dense": weight(
        lambda: mb.constexpr_lut_to_dense(indices=typed(NIBBLES, "uint4"), lut=TABLES),
        np.stack([TABLES[row // 2, 0, NIBBLES[row], 0] for row in range(6)]),
    ),
    "constexpr_lut_to_dense vectors": weight(
        lambda: mb.constexpr_lut_to_dense(indices=typed(THREES, "uint3"), lut=VECTORS, vector_axis=0),
        np.stack([VECTORS[0, 0, THREES[row // 2], row % 2] for row in range(12)]),
        12,
        8,
    ),
    "constexpr_sparse_to_dense": weight(
        lambda: mb.constexpr_sparse_to_dense(nonzero_data=KEPT, mask=typed(BITS, "uint1")), sparse(KEPT)
    ),
    "constexpr_lut_to_sparse": weight(
        lambda: unpacked(
            mb.constexpr_lut_to_sparse(
                indices_mask=typed(BITS, "uint1"),
                indices_nonzero_data=typed(NIBBLES[BITS == 1], "uint4"),
                lut=TABLES[:1],
            )
        ),
        sparse(TABLES[0, 0, NIBBLES[BITS == 1], 0]),
    ),
    "constexpr_sparse_blockwise_shift_scale": weight(
        lambda: unpacked(
            mb.constexpr_sparse_blockwise_shift_scale(
                data_mask=typed(BITS, "uint1"),
                nonzero_data=typed(SIGNED[BITS == 1], "int8"),
                scale=BLOCKS,
                offset=typed(OFFSETS, "int8"),
            )
        ),
        BITS * BLOCKS.repeat(4, 1) * (SIGNED - OFFSETS.repeat(4, 1)),
    ),
    "quantize": Case(
        lambda x: number(
            mb.quantize(input=x, scale=SCALES[:3], zero_point=np.uint8([9, 99, 199]), axis=1, output_dtype="uint8")
        ),
        (X * 30,),
        lambda x: np.clip(np.round(x / SCALES[:3, None]) + np.float32([9, 99, 199])[:, None], 0, 255),
    ),
    "dequantize": Case(
        lambda x: mb.dequantize(
            input=mb.quantize(input=x, scale=np.float32(0.5), output_dtype="int8"), scale=np.float32(0.5)
        ),
        (X,),
        lambda x: np.round(x / 0.5) * 0.5,
    ),
}


def unpacked(parts: Any) -> Any:
    mask, values = parts
    return mb.constexpr_sparse_to_dense(nonzero_data=values, mask=mask)
