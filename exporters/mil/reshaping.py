"""Other shapes for the same numbers: reshapes, joins, cuts, padding."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .table import Bools, Ints, Tensors, kernel, named


@kernel
def reshape(x: Tensor, shape: Ints) -> Tensor:
    """A 0 is the size that x has there, counted from the right; -1 is what is left."""
    return x.reshape([size or _from_right(x, len(shape) - axis) for axis, size in enumerate(shape)])


def _from_right(x: Tensor, position: int) -> int:
    return x.shape[-position] if position <= x.dim() else 1


@kernel
def reshape_like(x: Tensor, ref_tensors: Tensors, begins: Ints, ends: Ints, end_masks: Bools) -> Tensor:
    shape: list[int] = []
    for reference, begin, end, mask in zip(ref_tensors, begins, ends, end_masks, strict=True):
        shape += reference.shape[begin:] if mask else reference.shape[begin:end]
    return x.reshape(shape)


@kernel
def expand_dims(x: Tensor, axes: Ints) -> Tensor:
    for axis in sorted(axis % (x.dim() + len(axes)) for axis in axes):
        x = x.unsqueeze(axis)
    return x


@kernel
def squeeze(x: Tensor, axes: Ints | None = None) -> Tensor:
    return x.squeeze() if axes is None else x.squeeze(axes)


@kernel
def flatten2d(x: Tensor, axis: int = 1) -> Tensor:
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


@kernel
def transpose(x: Tensor, perm: Ints) -> Tensor:
    return x.permute(perm)


@kernel
def reverse(x: Tensor, axes: Ints | None = None) -> Tensor:
    return x.flip(tuple(range(x.dim())) if axes is None else axes)


@kernel
def reverse_sequence(x: Tensor, lengths: Ints, seq_axis: int = 0, batch_axis: int = 0) -> Tensor:
    """The first `lengths[i]` of each row i are turned round, the rest stays."""
    rows = []
    for row, length in zip(x.unbind(batch_axis), lengths, strict=True):
        axis = seq_axis - (seq_axis > batch_axis)
        rows.append(
            torch.cat(
                [row.narrow(axis, 0, length).flip(axis), row.narrow(axis, length, row.shape[axis] - length)], axis
            )
        )
    return torch.stack(rows, batch_axis)


@kernel
def concat(values: Tensors, axis: int, interleave: bool = False) -> Tensor:
    if values[0].dim() == 0:
        return torch.stack(values)
    if interleave:
        axis %= values[0].dim()
        return torch.stack(values, axis + 1).flatten(axis, axis + 1)
    return torch.cat(values, axis)


@kernel
def stack(values: Tensors, axis: int) -> Tensor:
    return torch.stack(values, axis)


@kernel
def split(x: Tensor, axis: int, num_splits: int | None = None, split_sizes: Ints | None = None) -> Tensors:
    if split_sizes is not None:
        return torch.split(x, list(split_sizes), axis)
    assert num_splits is not None, "split has neither sizes nor a number"
    return torch.split(x, x.shape[axis] // num_splits, axis)


@kernel
def tile(x: Tensor, reps: Ints) -> Tensor:
    return x.repeat(reps)


@kernel
def sliding_windows(x: Tensor, axis: int, size: int, stride: int = 1) -> Tensor:
    axis %= x.dim()
    return x.unfold(axis, size, stride).movedim(-1, axis + 1)


@named("pad")
def pad_(x: Tensor, pad: Ints, mode: str = "constant", constant_val: float = 0.0) -> Tensor:
    """`pad` holds before and after of the last dimensions, the first of these first."""
    first = x.dim() - len(pad) // 2
    if mode == "constant":
        pairs = [pad[i : i + 2] for i in range(0, len(pad), 2)]
        return F.pad(x, [size for pair in reversed(pairs) for size in pair], value=constant_val)
    for axis, before, after in zip(range(first, x.dim()), pad[::2], pad[1::2], strict=True):
        size = x.shape[axis]
        places = torch.arange(-before, size + after)
        if mode == "reflect":
            places = (size - 1) - (places.abs() - (size - 1)).abs()
        x = x.index_select(axis, places.clamp(0, size - 1))
    return x


@kernel
def crop(x: Tensor, crop_height: Ints, crop_width: Ints) -> Tensor:
    (top, bottom), (left, right) = crop_height, crop_width
    return x[..., top : x.shape[-2] - bottom, left : x.shape[-1] - right]


@kernel
def pixel_shuffle(x: Tensor, upscale_factor: int) -> Tensor:
    return F.pixel_shuffle(x, upscale_factor)


@kernel
def pixel_unshuffle(x: Tensor, downscale_factor: int) -> Tensor:
    return F.pixel_unshuffle(x, downscale_factor)


@kernel
def depth_to_space(x: Tensor, block_size: int) -> Tensor:
    """The channels of one pixel of a block lie together, as TensorFlow's operation of this name has them."""
    n, c, h, w = x.shape
    blocks = x.reshape(n, block_size, block_size, c // block_size**2, h, w)
    return blocks.permute(0, 3, 4, 1, 5, 2).reshape(n, c // block_size**2, h * block_size, w * block_size)


@kernel
def space_to_depth(x: Tensor, block_size: int) -> Tensor:
    n, c, h, w = x.shape
    blocks = x.reshape(n, c, h // block_size, block_size, w // block_size, block_size)
    return blocks.permute(0, 3, 5, 1, 2, 4).reshape(n, c * block_size**2, h // block_size, w // block_size)


@kernel
def space_to_batch(x: Tensor, block_shape: Ints, paddings: Ints) -> Tensor:
    """The rows of one pixel of a block lie together, as TensorFlow's operation of this name has them."""
    high, wide = block_shape
    top, bottom, left, right = paddings
    n, c, h, w = (x := F.pad(x, (left, right, top, bottom))).shape
    blocks = x.reshape(n, c, h // high, high, w // wide, wide)
    return blocks.permute(3, 5, 0, 1, 2, 4).reshape(n * high * wide, c, h // high, w // wide)


@kernel
def batch_to_space(x: Tensor, block_shape: Ints, crops: Ints) -> Tensor:
    high, wide = block_shape
    n, c, h, w = x.shape
    blocks = x.reshape(high, wide, n // (high * wide), c, h, w).permute(2, 3, 4, 0, 5, 1)
    return crop(blocks.reshape(n // (high * wide), c, h * high, w * wide), crops[:2], crops[2:])
