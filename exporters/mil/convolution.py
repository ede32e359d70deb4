"""Convolutions and pools over one, two or three spatial dimensions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .table import Ints, kernel

CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
AVERAGES = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
MAXIMA = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


@kernel
def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    strides: Ints | None = None,
    pad_type: str = "valid",
    pad: Ints | None = None,
    dilations: Ints | None = None,
    groups: int = 1,
) -> Tensor:
    rank = x.dim() - 2
    ones = (1,) * rank
    strides, dilations = strides or ones, dilations or ones
    reach = [(size - 1) * dilation + 1 for size, dilation in zip(weight.shape[2:], dilations, strict=True)]
    before, after = _padding(pad_type, pad, x.shape[2:], reach, strides)
    if before != after:
        x, before = F.pad(x, _last_first(before, after)), (0,) * rank
    found: Tensor = CONVOLUTIONS[rank](x, weight, bias, strides, before, dilations, groups)
    return found


@kernel
def conv_transpose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    pad: Ints | None = None,
    output_shape: Ints | None = None,
    pad_type: str = "valid",
    strides: Ints | None = None,
    dilations: Ints | None = None,
    groups: int = 1,
) -> Tensor:
    """Everything that the kernels reach, of which padding cuts off the edges; past the reach there is only the bias."""
    rank = x.dim() - 2
    ones = (1,) * rank
    strides, dilations = strides or ones, dilations or ones
    full: Tensor = TRANSPOSED[rank](x, weight, None, strides, 0, 0, groups, dilations)
    if pad_type in ("same", "same_lower"):
        wanted = [size * stride for size, stride in zip(x.shape[2:], strides, strict=True)]
        cut = [max(have - want, 0) for have, want in zip(full.shape[2:], wanted, strict=True)]
        before = [-(-c // 2) if pad_type == "same_lower" else c // 2 for c in cut]
    else:
        before = list(pad[::2]) if pad and pad_type == "custom" else [0] * rank
        after = list(pad[1::2]) if pad and pad_type == "custom" else [0] * rank
        wanted = [have - b - a for have, b, a in zip(full.shape[2:], before, after, strict=True)]
    wanted = list(output_shape[2:]) if output_shape else wanted
    ends = [want + b - have for want, b, have in zip(wanted, before, full.shape[2:], strict=True)]
    fitted = F.pad(full, _last_first([-b for b in before], ends))
    return fitted if bias is None else fitted + bias.reshape(-1, *ones)


@kernel
def max_pool(
    x: Tensor,
    kernel_sizes: Ints,
    pad_type: str,
    strides: Ints | None = None,
    pad: Ints | None = None,
    ceil_mode: bool = False,
) -> Tensor:
    return _pool(MAXIMA[x.dim() - 2], x, -math.inf, kernel_sizes, pad_type, strides, pad, ceil_mode)


@kernel
def avg_pool(
    x: Tensor,
    kernel_sizes: Ints,
    pad_type: str,
    strides: Ints | None = None,
    pad: Ints | None = None,
    exclude_padding_from_average: bool = False,
    ceil_mode: bool = False,
) -> Tensor:
    rest = (kernel_sizes, pad_type, strides, pad, ceil_mode)
    means = _pool(AVERAGES[x.dim() - 2], x, 0.0, *rest)
    if not exclude_padding_from_average:
        return means
    return means / _pool(AVERAGES[x.dim() - 2], torch.ones_like(x[:1, :1]), 0.0, *rest)


@kernel
def l2_pool(
    x: Tensor,
    kernel_sizes: Ints,
    pad_type: str,
    strides: Ints | None = None,
    pad: Ints | None = None,
    ceil_mode: bool = False,
) -> Tensor:
    means = _pool(AVERAGES[x.dim() - 2], x.square(), 0.0, kernel_sizes, pad_type, strides, pad, ceil_mode)
    return (means * math.prod(kernel_sizes)).sqrt()


def _pool(
    function: Callable[..., Tensor],
    x: Tensor,
    filled: float,
    sizes: Ints,
    pad_type: str,
    strides: Ints | None,
    pad: Ints | None,
    ceil_mode: bool,
) -> Tensor:
    strides = strides or (1,) * len(sizes)
    before, after = _padding(pad_type, pad, x.shape[2:], sizes, strides)
    # torch drops a window that would begin in the padding at the end: it must know what is padding
    if ceil_mode and before == after:
        return function(x, sizes, strides, before, ceil_mode=True)
    return function(F.pad(x, _last_first(before, after), value=filled), sizes, strides, ceil_mode=ceil_mode)


def _padding(
    pad_type: str, pad: Ints | None, sizes: Sequence[int], reach: Sequence[int], strides: Sequence[int]
) -> tuple[Ints, Ints]:
    """What to put before and after each spatial dimension.

    `same` gives ceil(size / stride) outputs, an odd row of padding after; `same_lower` before.
    """
    if pad_type == "valid":
        return (0,) * len(sizes), (0,) * len(sizes)
    if pad_type == "custom":
        pad = pad or (0,) * (2 * len(sizes))
        return pad[::2], pad[1::2]
    totals = [
        max(0, (math.ceil(size / stride) - 1) * stride + length - size)
        for size, length, stride in zip(sizes, reach, strides, strict=True)
    ]
    less, more = tuple(total // 2 for total in totals), tuple(total - total // 2 for total in totals)
    return {"same": (less, more), "same_lower": (more, less)}[pad_type]


def _last_first(before: Sequence[int], after: Sequence[int]) -> list[int]:
    """Padding as torch takes it: pairs, the last dimension first."""
    return [size for pair in zip(before[::-1], after[::-1], strict=True) for size in pair]
