"""Slices, gathers and scatters. A scatter is the gather of the places that it writes to, then one write."""

from __future__ import annotations

import torch
from torch import Tensor

from .table import Bools, Ints, kernel


@kernel
def slice_by_index(
    x: Tensor,
    begin: Ints,
    end: Ints,
    stride: Ints | None = None,
    begin_mask: Bools | None = None,
    end_mask: Bools | None = None,
    squeeze_mask: Bools | None = None,
) -> Tensor:
    """Python's slices; a mask drops a bound, or takes the single place `begin` and the axis away."""
    none = (False,) * x.dim()
    steps = stride or (1,) * x.dim()
    firsts, lasts, singles = begin_mask or none, end_mask or none, squeeze_mask or none
    for axis, size in enumerate(x.shape):
        if singles[axis]:
            place = 0 if firsts[axis] else begin[axis]
            x = x.narrow(axis, place % size, 1)
            continue
        low, high = None if firsts[axis] else begin[axis], None if lasts[axis] else end[axis]
        places = range(*slice(low, high, steps[axis]).indices(size))
        x = x.narrow(axis, places.start if places else 0, len(places)) if places.step == 1 else _take(x, axis, places)
    return x.squeeze([axis for axis, single in enumerate(singles) if single])


def _take(x: Tensor, axis: int, places: range) -> Tensor:
    return x.index_select(axis, torch.tensor(list(places), dtype=torch.int64))


@kernel
def slice_by_size(x: Tensor, begin: Ints, size: Ints) -> Tensor:
    for axis, (start, length) in enumerate(zip(begin, size, strict=True)):
        start = start + x.shape[axis] if start < 0 else start
        x = x.narrow(axis, start, x.shape[axis] - start if length == -1 else length)
    return x


@kernel
def slice_update(
    x: Tensor,
    update: Tensor,
    begin: Ints,
    end: Ints,
    stride: Ints | None = None,
    begin_mask: Bools | None = None,
    end_mask: Bools | None = None,
    squeeze_mask: Bools | None = None,
) -> Tensor:
    places = slice_by_index(_places(x), begin, end, stride, begin_mask, end_mask, squeeze_mask)
    return _write(x, places, update, "update")


@kernel
def gather(x: Tensor, indices: Tensor, axis: int = 0, batch_dims: int = 0, validate_indices: bool = False) -> Tensor:  # noqa: ARG001 - always validated
    axis %= x.dim()
    places = _positive(indices, x.shape[axis])
    batch, between, after = x.shape[:batch_dims], x.shape[batch_dims:axis], x.shape[axis + 1 :]
    rest = places.shape[batch_dims:]
    if not batch_dims:
        return x.index_select(axis, places.reshape(-1)).reshape((*between, *rest, *after))
    rows = x.reshape(batch.numel(), between.numel(), x.shape[axis], after.numel())
    chosen = places.reshape(batch.numel(), 1, rest.numel(), 1).expand(-1, rows.shape[1], -1, rows.shape[3])
    return rows.gather(2, chosen).reshape((*batch, *between, *rest, *after))


@kernel
def gather_along_axis(x: Tensor, indices: Tensor, axis: int = 0, validate_indices: bool = False) -> Tensor:  # noqa: ARG001 - always validated
    return x.gather(axis, _positive(indices, x.shape[axis]))


@kernel
def gather_nd(x: Tensor, indices: Tensor, batch_dims: int = 0, validate_indices: bool = False) -> Tensor:  # noqa: ARG001 - always validated
    batch = x.shape[:batch_dims]
    rows = x.reshape(batch.numel(), *x.shape[batch_dims:])
    places = indices.reshape(batch.numel(), *indices.shape[batch_dims:])
    own = torch.arange(batch.numel()).reshape(-1, *(1,) * (places.dim() - 2)).expand(places.shape[:-1])
    parts = [_positive(part, size) for part, size in zip(places.unbind(-1), rows.shape[1:], strict=False)]
    found = rows[(own, *parts)]
    return found.reshape(*batch, *found.shape[1:])


@kernel
def scatter(
    data: Tensor,
    indices: Tensor,
    updates: Tensor,
    axis: int = 0,
    mode: str = "add",
    validate_indices: bool = False,  # noqa: ARG001 - always validated
) -> Tensor:
    return _write(data, gather(_places(data), indices, axis), updates, mode)


@kernel
def scatter_along_axis(
    data: Tensor,
    indices: Tensor,
    updates: Tensor,
    axis: int = 0,
    mode: str = "add",
    validate_indices: bool = False,  # noqa: ARG001 - always validated
) -> Tensor:
    return _write(data, gather_along_axis(_places(data), indices, axis), updates, mode)


@kernel
def scatter_nd(
    data: Tensor,
    indices: Tensor,
    updates: Tensor,
    mode: str = "add",
    validate_indices: bool = False,  # noqa: ARG001 - always validated
) -> Tensor:
    return _write(data, gather_nd(_places(data), indices), updates, mode)


def _positive(indices: Tensor, size: int) -> Tensor:
    """Places counted from the front."""
    whole = indices.long()
    return torch.where(whole < 0, whole + size, whole)


def _places(x: Tensor) -> Tensor:
    """For each number of a tensor, where it lies."""
    return torch.arange(x.numel()).reshape(x.shape)


def _write(data: Tensor, places: Tensor, updates: Tensor, mode: str) -> Tensor:
    flat, where, new = data.flatten(), places.flatten(), updates.flatten()
    if mode == "update":
        return flat.scatter(0, where, new).reshape(data.shape)
    new = {"sub": torch.neg, "div": torch.reciprocal}.get(mode, torch.clone)(new)
    how = {"add": "sum", "sub": "sum", "mul": "prod", "div": "prod", "max": "amax", "min": "amin"}[mode]
    return flat.scatter_reduce(0, where, new, how).to(data.dtype).reshape(data.shape)
