"""ATen operators whose kernels believe their arguments, behind the checks that the kernels lack (torch 2.13).

Each refuses before the call: what the kernels do with such arguments is to read past the end of a tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from ..errors import EngineError
from ._torch_attention import ATTENTION, attend

MOST_SCALE = 1024  # of an upsampling, either way: diffusion models have 1/8 to 8
ROUNDING = 1e-6  # of a size times a scale


def checked(operator: OpOverload) -> Callable[..., Any]:
    """The operator, or the function that a program calls in its place."""
    packet = operator._schema.name.removeprefix("aten::")
    if packet.startswith(("upsample_", "_upsample_")):
        return checked_upsample(operator)
    instead: dict[OpOverload, Callable[..., Any]] = {ATTENTION: attend, BATCH_NORM: batch_norm_no_training}
    return instead.get(operator, operator)


@cache
def checked_upsample(operator: OpOverload) -> Callable[..., Tensor]:
    """An upsampling of floats, whose scales make the output's size of the input's.

    uint8 has kernels that look at no bounds. Scales go before sizes there and in CUDA's kernels: pixel i of the output is
    read at i / scale.
    """
    names = [argument.name for argument in operator._schema.arguments]

    def upsample(*args: Any, **kwargs: Any) -> Tensor:
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        image, sizes, scales = given[names[0]], given.get("output_size"), _scales(given)
        if not image.is_floating_point():
            raise EngineError(f"{operator}: the input is {image.dtype}, and only floats are upsampled; export again")
        _check_scales(operator, image.shape[2:], sizes, scales)
        found: Tensor = operator(*(given.get(name) for name in names))
        return found

    return upsample


def _scales(given: dict[str, Any]) -> list[Any]:
    """The scales of each axis: `scale_factors` as a list, or `scales_h` and `scales_w`, or `scales`."""
    if given.get("scale_factors") is not None:
        return list(given["scale_factors"])
    return [given[name] for name in ("scales", "scales_d", "scales_h", "scales_w") if name in given]


def _check_scales(operator: OpOverload, before: Sequence[int], after: Sequence[int] | None, scales: list[Any]) -> None:
    for axis, scale in enumerate(scales):
        if scale is None:
            continue
        if not 1 / MOST_SCALE <= scale <= MOST_SCALE:
            raise EngineError(f"{operator}: a scale of {scale} is not between 1/{MOST_SCALE} and {MOST_SCALE}")
        if after is None:
            continue
        if len(before) != len(after) or axis >= len(after):
            raise EngineError(f"{operator}: {len(scales)} scales and {len(after)} sizes for {len(before)} axes")
        made, slack = before[axis] * scale, ROUNDING * before[axis] * scale
        if not -slack <= made - after[axis] <= 1 + slack:
            raise EngineError(f"{operator}: a scale of {scale} does not make {after[axis]} of {before[axis]} pixels")


def batch_norm_no_training(
    image: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """y = (x - mean) / sqrt(var + eps) * weight + bias, of each channel: decompositions make the native form of it, which is
    told how many channels there are by its input alone. `batch_norm` compares. What training saves is empty here."""
    found = torch.ops.aten.batch_norm.default(
        image, weight, bias, running_mean, running_var, False, momentum, eps, False
    )
    nothing = image.new_zeros(0)
    return found, nothing, nothing


BATCH_NORM = torch.ops.aten._native_batch_norm_legit_no_training.default
