"""Pictures at other sizes: the points at which each output lies between the inputs, axis by axis."""

from __future__ import annotations

import torch
from torch import Tensor

from .table import Ints, kernel


@kernel
def upsample_nearest_neighbor(x: Tensor, scale_factor_height: float = 1.0, scale_factor_width: float = 1.0) -> Tensor:
    return _resize(x, _scaled(x, scale_factor_height, scale_factor_width), "NEAREST_NEIGHBOR", "DEFAULT")


@kernel
def resize_nearest_neighbor(x: Tensor, target_size_height: int, target_size_width: int) -> Tensor:
    return _resize(x, (target_size_height, target_size_width), "NEAREST_NEIGHBOR", "DEFAULT")


@kernel
def upsample_bilinear(
    x: Tensor,
    scale_factor_height: float = 1.0,
    scale_factor_width: float = 1.0,
    align_corners: bool = True,
    half_pixel_centers: bool | None = None,
) -> Tensor:
    half = not align_corners if half_pixel_centers is None else half_pixel_centers
    if align_corners and half:
        raise ValueError("corners are aligned or pixels have centres, not both")
    mode = "STRICT_ALIGN_CORNERS" if align_corners else "UNALIGN_CORNERS" if half else "DEFAULT"
    return _resize(x, _scaled(x, scale_factor_height, scale_factor_width), "LINEAR", mode)


@kernel
def resize_bilinear(
    x: Tensor, target_size_height: int = 1, target_size_width: int = 1, sampling_mode: str = "DEFAULT"
) -> Tensor:
    return _resize(x, (target_size_height, target_size_width), "LINEAR", sampling_mode)


@kernel
def resize(
    x: Tensor, shape: Ints, resized_dims: int, interpolation_mode: str = "LINEAR", sampling_mode: str = "DEFAULT"
) -> Tensor:
    """The last `resized_dims` sizes are those of `shape`, a 0 leaves the size as it is."""
    sizes = shape[len(shape) - resized_dims :]
    kept = x.shape[x.dim() - resized_dims :]
    return _resize(
        x, tuple(size or old for size, old in zip(sizes, kept, strict=True)), interpolation_mode, sampling_mode
    )


def _scaled(x: Tensor, height: float, width: float) -> Ints:
    return int(x.shape[-2] * height), int(x.shape[-1] * width)


def _resize(x: Tensor, sizes: Ints, interpolation: str, sampling: str) -> Tensor:
    for axis, size in enumerate(sizes, start=x.dim() - len(sizes)):
        if size == x.shape[axis] and sampling != "OFFSET_CORNERS":
            continue
        points = _points(x.shape[axis], size, sampling)
        x = _between(x, axis, points) if interpolation == "LINEAR" else _nearest(x, axis, size, sampling)
    return x


def _points(old: int, new: int, sampling: str) -> Tensor:
    """Where each output lies between the inputs 0 … old - 1, as MIL's resize_bilinear says."""
    i = torch.arange(new, dtype=torch.float64)
    if sampling in ("STRICT_ALIGN_CORNERS", "ALIGN_CORNERS") and new == 1:
        return torch.full((1,), (old - 1) / 2 if sampling == "ALIGN_CORNERS" else 0.0, dtype=torch.float64)
    spacing, first = {
        "STRICT_ALIGN_CORNERS": ((old - 1) / max(new - 1, 1), 0.0),
        "ALIGN_CORNERS": ((old - 1) / max(new - 1, 1), 0.0),
        "DEFAULT": (old / new, 0.0),
        "OFFSET_CORNERS": (max(1, old - 1) / new, 0.5 * max(1, old - 1) / new),
        "UNALIGN_CORNERS": (old / new, 0.5 * old / new - 0.5),
    }[sampling]
    return (i * spacing + first).clamp(0, old - 1)


def _between(x: Tensor, axis: int, points: Tensor) -> Tensor:
    """Values at points between two neighbours along an axis."""
    low = points.floor().long()
    share = (points - low).to(x.dtype).reshape(-1, *(1,) * (x.dim() - 1 - axis))
    left, right = x.index_select(axis, low), x.index_select(axis, (low + 1).clamp(max=x.shape[axis] - 1))
    return left + (right - left) * share


def _nearest(x: Tensor, axis: int, size: int, sampling: str) -> Tensor:
    """The input pixel that each output pixel falls into: its first corner for DEFAULT, its centre for UNALIGN_CORNERS.
    For the other modes MIL does not say which neighbour is the nearest."""
    offset = {"DEFAULT": 0, "UNALIGN_CORNERS": 1}[sampling]
    places = torch.div((2 * torch.arange(size) + offset) * x.shape[axis], 2 * size, rounding_mode="floor")
    return x.index_select(axis, places)
