"""Tensors out of sizes and conditions: ranges, fills, sorts, shapes."""

from __future__ import annotations

import torch
from torch import Tensor

from .table import Ints, Tensors, kernel, named


@named("shape")
def shape_(x: Tensor) -> Tensor:
    return torch.tensor(x.shape, dtype=torch.int32)


@kernel
def fill(shape: Ints, value: Tensor | None = None) -> Tensor:
    return torch.zeros(shape) if value is None else value.reshape(()).expand(shape)


@kernel
def fill_like(ref_tensor: Tensor, value: Tensor | None = None) -> Tensor:
    return fill(tuple(ref_tensor.shape), value)


@kernel
def range_1d(start: Tensor, end: Tensor, step: Tensor) -> Tensor:
    return torch.arange(start.item(), end.item(), step.item(), dtype=start.dtype)


@kernel
def one_hot(
    indices: Tensor,
    one_hot_vector_size: int,
    axis: int = -1,
    on_value: Tensor | None = None,
    off_value: Tensor | None = None,
) -> Tensor:
    on = torch.tensor(1, dtype=torch.int32) if on_value is None else on_value
    off = torch.zeros_like(on) if off_value is None else off_value
    places = torch.arange(one_hot_vector_size).reshape(-1, *(1,) * indices.dim())
    return torch.where(indices == places, on, off).movedim(0, axis)


@kernel
def band_part(x: Tensor, lower: int = -1, upper: int = -1) -> Tensor:
    below = torch.arange(x.shape[-2])[:, None] - torch.arange(x.shape[-1])
    kept = ((below <= lower) | (lower < 0)) & ((-below <= upper) | (upper < 0))
    return torch.where(kept, x, torch.zeros_like(x))


@kernel
def cumsum(x: Tensor, axis: int = 0, exclusive: bool = False, reverse: bool = False) -> Tensor:
    x = x.flip(axis) if reverse else x
    sums = torch.cumsum(x, axis, dtype=x.dtype)
    sums = sums - x if exclusive else sums
    return sums.flip(axis) if reverse else sums


@kernel
def non_zero(x: Tensor) -> Tensor:
    return torch.nonzero(x)


@kernel
def argsort(x: Tensor, axis: int = -1, ascending: bool = False) -> Tensor:
    _, indices = torch.sort(x, dim=axis, descending=not ascending, stable=True)
    return indices


@kernel
def topk(
    x: Tensor,
    k: int = 1,
    axis: int = -1,
    ascending: bool = False,
    sort: bool = True,  # noqa: ARG001 - where no order is promised, the sorted one is as good as any
    return_indices: bool = True,
    output_indices_dtype: str = "int32",  # noqa: ARG001 - declared by the result's type
) -> Tensors:
    values, indices = torch.sort(x, dim=axis, descending=not ascending, stable=True)
    count = x.shape[axis] if k == -1 else k
    found = values.narrow(axis, 0, count), indices.narrow(axis, 0, count)
    return found if return_indices else found[:1]
