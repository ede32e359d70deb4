"""Compressed weights: what MIL's constexpr operations unpack, in the forms of iOS 16 and of iOS 18, and the two
operations that quantize and dequantize activations."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .blobs import unpack
from .table import Ints, Tensors, kernel


@kernel
def constexpr_affine_dequantize(quantized_data: Tensor, zero_point: Tensor, scale: Tensor, axis: int) -> Tensor:
    """scale * (data - zero point), one of each or one for each place along the axis."""
    return dequantize(quantized_data, scale, zero_point, axis)


@kernel
def constexpr_blockwise_shift_scale(data: Tensor, scale: Tensor, offset: Tensor | None = None) -> Tensor:
    """scale * (data - offset), one of each for every block of data."""
    values = data.float() if offset is None else data.float() - _repeat(offset.float(), data)
    return _repeat(scale.float(), data) * values


@kernel
def constexpr_cast(source_val: Tensor, output_dtype: str) -> Tensor:  # noqa: ARG001 - declared by the result's type
    return source_val


@kernel
def constexpr_lut_to_dense(
    indices: Tensor, lut: Tensor, shape: Ints | None = None, vector_axis: int | None = None
) -> Tensor:
    """Each index replaced by its entry. iOS 16: indices packed into bytes, with the shape of what they give. iOS 18: one
    table for every block of indices, whose entries may be vectors along an axis."""
    if shape is not None:
        count, bits = math.prod(shape), int(math.log2(len(lut)))
        return lut[torch.from_numpy(unpack(indices.numpy(), count, bits)).long()].reshape(shape)
    grid, (entries, length) = lut.shape[:-2], lut.shape[-2:]
    tables = _repeat(torch.arange(grid.numel()).reshape(grid), indices)
    found = lut.reshape(-1, length)[tables * entries + indices.long()]
    axis = (vector_axis or 0) % indices.dim()
    return found.movedim(-1, axis + 1).flatten(axis, axis + 1)


@kernel
def constexpr_lut_to_sparse(
    indices_mask: Tensor, indices_nonzero_data: Tensor, lut: Tensor, vector_axis: int | None = None
) -> Tensors:
    """The mask and the values of what is not zero, each index replaced by its entry."""
    dense = constexpr_lut_to_dense(
        constexpr_sparse_to_dense(indices_nonzero_data, indices_mask), lut, None, vector_axis
    )
    length = lut.shape[-1]
    mask = indices_mask if length == 1 else indices_mask.repeat_interleave(length, vector_axis)
    return mask, dense[mask.bool()]


@kernel
def constexpr_sparse_blockwise_shift_scale(
    data_mask: Tensor, nonzero_data: Tensor, scale: Tensor, offset: Tensor | None = None
) -> Tensors:
    """The mask and the values of what is not zero, scaled as blocks of the dense tensor are."""
    dense = constexpr_blockwise_shift_scale(constexpr_sparse_to_dense(nonzero_data, data_mask), scale, offset)
    return data_mask, dense[data_mask.bool()]


@kernel
def constexpr_sparse_to_dense(nonzero_data: Tensor, mask: Tensor, shape: Ints | None = None) -> Tensor:
    """The values put where the mask has ones. iOS 16: the mask packed into bytes, with the shape of what it gives."""
    if shape is not None:
        mask = torch.from_numpy(unpack(mask.numpy(), math.prod(shape), 1)).reshape(shape)
    dense = torch.zeros(mask.shape, dtype=nonzero_data.dtype)
    dense[mask.bool()] = nonzero_data
    return dense


@kernel
def quantize(
    input: Tensor,
    scale: Tensor,
    output_dtype: str,
    zero_point: Tensor | None = None,
    axis: int | None = None,
) -> Tensor:
    """round(input / scale) + zero point, as much of it as the dtype holds."""
    dtype = {"int8": torch.int8, "uint8": torch.uint8}[output_dtype]
    whole = torch.round(input / _along(scale, input, axis))
    moved = whole if zero_point is None else whole + _along(zero_point.float(), input, axis)
    return moved.clamp(torch.iinfo(dtype).min, torch.iinfo(dtype).max).to(dtype)


@kernel
def dequantize(input: Tensor, scale: Tensor, zero_point: Tensor | None = None, axis: int | None = None) -> Tensor:
    """scale * (input - zero point)."""
    values = input.float() if zero_point is None else input.float() - _along(zero_point.float(), input, axis)
    return _along(scale, input, axis) * values


def _along(values: Tensor, x: Tensor, axis: int | None) -> Tensor:
    """A scalar as it is, a vector along an axis of x."""
    if values.dim() == 0:
        return values
    assert axis is not None, "a vector of scales without its axis"
    return values.reshape([-1 if place == axis % x.dim() else 1 for place in range(x.dim())])


def _repeat(values: Tensor, x: Tensor) -> Tensor:
    """One value for every block of x, in the shape of x."""
    for axis, (many, few) in enumerate(zip(x.shape, values.shape, strict=False)):
        values = values if many == few else values.repeat_interleave(many // few, axis)
    return values
