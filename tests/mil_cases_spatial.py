"""Cases of the operations on pictures: convolutions, pools and resizing, against loops in NumPy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from coremltools.converters.mil import Builder as mb  # noqa: N813 - coremltools' own name for it
from numpy.lib.stride_tricks import sliding_window_view

from .mil_cases import PICTURE, Array, Case, normal, positive

Pads = Sequence[tuple[int, int]]
NONE = ((0, 0), (0, 0))


def windows(
    x: Array, sizes: Sequence[int], strides: Sequence[int] = (1, 1), dilations: Sequence[int] = (1, 1)
) -> Array:
    """What a kernel sees at every place: (n, c, high, wide, *sizes)."""
    reach = [(size - 1) * dilation + 1 for size, dilation in zip(sizes, dilations, strict=True)]
    seen = sliding_window_view(x, reach, (2, 3))
    return seen[:, :, :: strides[0], :: strides[1], :: dilations[0], :: dilations[1]]


def padded(x: Array, pads: Pads, value: float = 0.0) -> Array:
    return np.pad(x, [(0, 0), (0, 0), *pads], constant_values=value)


def convolved(x: Array, w: Array, pads: Pads = NONE, groups: int = 1, **options: Any) -> Array:
    seen = windows(padded(x, pads), w.shape[2:], **options)
    parts = zip(np.split(seen, groups, 1), np.split(w, groups, 0), strict=True)
    return np.concatenate([np.einsum("nchwij,ocij->nohw", view, weight) for view, weight in parts], 1)


def spread(x: Array, w: Array, stride: int, dilation: int = 1) -> Array:
    """A transposed convolution without padding."""
    (n, _, h, wide), (_, out, kh, kw) = x.shape, w.shape
    full = np.zeros((n, out, (h - 1) * stride + (kh - 1) * dilation + 1, (wide - 1) * stride + (kw - 1) * dilation + 1))
    for i, j in np.ndindex(kh, kw):
        a, b = i * dilation, j * dilation
        full[:, :, a : a + (h - 1) * stride + 1 : stride, b : b + (wide - 1) * stride + 1 : stride] += np.einsum(
            "nchw,co->nohw", x, w[:, :, i, j]
        )
    return full


def conv(expect: Callable[..., Any], **options: Any) -> Case:
    return Case(lambda x: mb.conv(x=x, **options), (PICTURE,), expect)


W3, B3, PAIRS, EVEN = normal(6, 4, 3, 3), normal(6), normal(6, 2, 3, 3), normal(6, 4, 2, 4)
UP = normal(4, 3, 4, 4)
LINE, LINE_WEIGHT, BLOCK, BLOCK_WEIGHT = normal(2, 3, 9), normal(5, 3, 3), normal(1, 2, 4, 4, 4), normal(3, 2, 2, 2, 2)

CONVOLUTIONS = {
    "conv": conv(lambda x: convolved(x, W3) + B3[:, None, None], weight=W3, bias=B3),
    "conv custom": conv(
        lambda x: convolved(x, W3, ((1, 2), (0, 1)), strides=(2, 1)),
        weight=W3, pad_type="custom", pad=[1, 2, 0, 1], strides=[2, 1],
    ),
    "conv even padding": conv(
        lambda x: convolved(x, W3, ((1, 1), (1, 1)), strides=(2, 2)),
        weight=W3, pad_type="custom", pad=[1, 1, 1, 1], strides=[2, 2],
    ),
    "conv dilated": conv(lambda x: convolved(x, W3, dilations=(1, 2)), weight=W3, dilations=[1, 2]),
    "conv groups": conv(lambda x: convolved(x, PAIRS, groups=2), weight=PAIRS, groups=2),
    "conv same": conv(lambda x: convolved(x, EVEN, ((0, 1), (1, 2))), weight=EVEN, pad_type="same"),
    "conv same_lower": conv(lambda x: convolved(x, EVEN, ((1, 0), (2, 1))), weight=EVEN, pad_type="same_lower"),
    "conv same strided": conv(
        # 6 and 5 rows at stride 2 are 3 outputs each, so 1 and 2 rows of padding
        lambda x: convolved(x, W3, ((0, 1), (1, 1)), strides=(2, 2)), weight=W3, pad_type="same", strides=[2, 2],
    ),
    "conv 1d": Case(
        lambda x: mb.conv(x=x, weight=LINE_WEIGHT, strides=[2]),
        (LINE,),
        lambda x: np.einsum("nchi,oci->noh", sliding_window_view(x, 3, 2)[:, :, ::2], LINE_WEIGHT),
    ),
    "conv 3d": Case(
        lambda x: mb.conv(x=x, weight=BLOCK_WEIGHT),
        (BLOCK,),
        lambda x: np.einsum("ncxyzijk,ocijk->noxyz", sliding_window_view(x, (2, 2, 2), (2, 3, 4)), BLOCK_WEIGHT),
    ),
    "conv_transpose": Case(
        lambda x: mb.conv_transpose(x=x, weight=UP, strides=[2, 2], bias=B3[:3]),
        (PICTURE,),
        lambda x: spread(x, UP, 2) + B3[:3, None, None],
    ),
    "conv_transpose custom": Case(
        lambda x: mb.conv_transpose(x=x, weight=UP, strides=[2, 2], pad_type="custom", pad=[1, 1, 0, 2]),
        (PICTURE,),
        lambda x: spread(x, UP, 2)[:, :, 1:-1, :-2],
    ),
    "conv_transpose same": Case(
        lambda x: mb.conv_transpose(x=x, weight=UP, strides=[2, 2], pad_type="same"),
        (PICTURE,),
        lambda x: spread(x, UP, 2)[:, :, 1:-1, 1:-1],
    ),
    "conv_transpose dilated": Case(
        lambda x: mb.conv_transpose(x=x, weight=UP, dilations=[2, 2]), (PICTURE,), lambda x: spread(x, UP, 1, 2)
    ),
    "conv_transpose larger": Case(
        lambda x: mb.conv_transpose(
            x=x, weight=UP, strides=[2, 2], bias=B3[:3], pad_type="custom", pad=[1, 0, 1, 0], output_shape=[2, 3, 14, 12]
        ),
        (PICTURE,),
        lambda x: np.pad(spread(x, UP, 2)[:, :, 1:, 1:], [(0, 0), (0, 0), (0, 1), (0, 1)]) + B3[:3, None, None],
    ),
}  # fmt: skip


def pool(op: str, expect: Callable[..., Any], **options: Any) -> Case:
    return Case(lambda x: getattr(mb, op)(x=x, **options), (PICTURE,), expect)


def pooled(x: Array, how: Callable[..., Any], pads: Pads, value: float, strides: Sequence[int] = (2, 2)) -> Array:
    found: Array = how(windows(padded(x, pads, value), (3, 2), strides), axis=(-2, -1))
    return found


SIDES, K = ((1, 1), (1, 0)), {"kernel_sizes": [3, 2], "strides": [2, 2]}
CUSTOM = {**K, "pad_type": "custom", "pad": [1, 1, 1, 0]}
POOLS = {
    "max_pool": pool("max_pool", lambda x: pooled(x, np.max, NONE, 0), pad_type="valid", **K),
    "max_pool custom": pool("max_pool", lambda x: pooled(x, np.max, SIDES, -np.inf), **CUSTOM),
    "max_pool same": pool(
        "max_pool", lambda x: pooled(x, np.max, ((0, 1), (0, 1)), -np.inf), pad_type="same", **K
    ),
    "max_pool ceil": pool(
        # 6 rows and 1 + 1 of padding are 4 windows of 3 at stride 2 where the last may reach out; one begins in the padding
        "max_pool", lambda x: pooled(x, np.max, ((1, 2), (0, 1)), -np.inf)[:, :, :4],
        pad_type="custom", pad=[1, 1, 0, 0], ceil_mode=True, **K,
    ),
    "avg_pool": pool("avg_pool", lambda x: pooled(x, np.mean, NONE, 0), pad_type="valid", **K),
    "avg_pool custom": pool("avg_pool", lambda x: pooled(x, np.mean, SIDES, 0), **CUSTOM),
    "avg_pool without padding": pool(
        "avg_pool", lambda x: pooled(x, np.nanmean, SIDES, np.nan), exclude_padding_from_average=True, **CUSTOM
    ),
    "l2_pool": pool("l2_pool", lambda x: np.sqrt(pooled(x**2, np.sum, NONE, 0)), pad_type="valid", **K),
}  # fmt: skip

RAMP = np.float32(
    [[[0, 1], [0, 1]]]
)  # the example of coremltools' documentation: where between 0 and 1 each output lies
DOCUMENTED = {
    "UNALIGN_CORNERS": ([0, 0.1, 0.5, 0.9, 1], [0, 0, 1 / 3, 2 / 3, 1, 1]),
    "STRICT_ALIGN_CORNERS": ([0, 0.25, 0.5, 0.75, 1], [0, 0.2, 0.4, 0.6, 0.8, 1]),
    "ALIGN_CORNERS": ([0, 0.25, 0.5, 0.75, 1], [0, 0.2, 0.4, 0.6, 0.8, 1]),
    "DEFAULT": ([0, 0.4, 0.8, 1, 1], [0, 1 / 3, 2 / 3, 1, 1, 1]),
    "OFFSET_CORNERS": ([0.1, 0.3, 0.5, 0.7, 0.9], [1 / 12, 0.25, 5 / 12, 7 / 12, 0.75, 11 / 12]),
}


def example(mode: str, wide: int) -> Case:
    return Case(
        lambda x: mb.resize_bilinear(x=x, target_size_height=2, target_size_width=wide, sampling_mode=mode),
        (RAMP,),
        lambda _: [[DOCUMENTED[mode][wide - 5]] * 2],
    )


def bilinear(x: Array, high: Sequence[float], wide: Sequence[float]) -> Array:
    """Values at rows and columns between the pixels."""
    rows = np.apply_along_axis(lambda line: np.interp(high, range(len(line)), line), -2, x)
    found: Array = np.apply_along_axis(lambda line: np.interp(wide, range(len(line)), line), -1, rows)
    return found


HALF = (np.arange(12) + 0.5) / 2 - 0.5
ALIGNED = np.linspace(0, 5, 12)
RESIZES = {
    **{f"resize_bilinear {mode} {wide}": example(mode, wide) for mode in DOCUMENTED for wide in (5, 6)},
    "resize_bilinear one pixel": Case(
        lambda x: mb.resize_bilinear(x=x, target_size_height=1, target_size_width=1, sampling_mode="ALIGN_CORNERS"),
        (PICTURE,),
        lambda x: bilinear(x, [2.5], [2.0]),
    ),
    "upsample_bilinear": Case(
        lambda x: mb.upsample_bilinear(x=x, scale_factor_height=2, scale_factor_width=3),
        (PICTURE,),
        lambda x: bilinear(x, ALIGNED, np.linspace(0, 4, 15)),
    ),
    "upsample_bilinear half pixels": Case(
        lambda x: mb.upsample_bilinear(x=x, scale_factor_height=2, scale_factor_width=1, align_corners=False),
        (PICTURE,),
        lambda x: bilinear(x, HALF, range(5)),
    ),
    "upsample_bilinear neither": Case(
        lambda x: mb.upsample_bilinear(
            x=x, scale_factor_height=2, scale_factor_width=1, align_corners=False, half_pixel_centers=False
        ),
        (PICTURE,),
        lambda x: bilinear(x, np.arange(12) / 2, range(5)),
    ),
    "upsample_nearest_neighbor": Case(
        lambda x: mb.upsample_nearest_neighbor(x=x, scale_factor_height=2, scale_factor_width=3),
        (PICTURE,),
        lambda x: x.repeat(2, -2).repeat(3, -1),
    ),
    "upsample_nearest_neighbor fraction": Case(
        lambda x: mb.upsample_nearest_neighbor(x=x, scale_factor_height=1.5, scale_factor_width=1.0),
        (PICTURE,),
        lambda x: x[:, :, [0, 0, 1, 2, 2, 3, 4, 4, 5]],
    ),
    "resize_nearest_neighbor": Case(
        lambda x: mb.resize_nearest_neighbor(x=x, target_size_height=4, target_size_width=5),
        (PICTURE,),
        lambda x: x[:, :, [0, 1, 3, 4]],
    ),
    "resize linear": Case(
        lambda x: mb.resize(
            x=x, shape=[9, 12, 0], resized_dims=np.uint32(2), interpolation_mode="LINEAR", sampling_mode="UNALIGN_CORNERS"
        ),
        (PICTURE,),
        lambda x: bilinear(x, HALF, range(5)),
    ),
    "resize nearest": Case(
        lambda x: mb.resize(
            x=x, shape=[3, 5], resized_dims=np.uint32(2), interpolation_mode="NEAREST_NEIGHBOR",
            sampling_mode="UNALIGN_CORNERS",
        ),
        (positive(2, 6, 5),),
        lambda x: x[:, [1, 3, 5]],
    ),
}  # fmt: skip
