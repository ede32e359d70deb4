"""Weights as torchao 0.18 quantizes them: the integers and scales of its own tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_INT4: Any = getattr(torch, "int4")  # noqa: B009 - torch's stubs do not have it


def int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """int8 and a float32 scale for each row (rows, 1):  scale = max |w| / 127.5,  integer = round(w / scale)."""
    from torchao.quantization import Int8WeightOnlyConfig

    held = _quantized(weight, Int8WeightOnlyConfig(set_inductor_config=False))
    return held.qdata, held.scale.float()


def int4(weight: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """-8 to 7 (int8) and a scale for each group of a row:  scale = max |w| / 7.5,  integer = round(w / scale)."""
    from torchao.quantization import IntxWeightOnlyConfig, PerGroup

    held = _quantized(weight, IntxWeightOnlyConfig(weight_dtype=_INT4, granularity=PerGroup(group)))
    return held.qdata, held.scale.float()


def e4m3(weight: Tensor) -> tuple[Tensor, Tensor]:
    """float8 (e4m3) and a float32 scale for each row (rows, 1):  scale = max |w| / 448. A row of zeros has scale 1, where
    torchao divides 0 by 0."""
    from torchao.quantization import Float8WeightOnlyConfig, PerRow

    held = _quantized(weight, Float8WeightOnlyConfig(set_inductor_config=False, granularity=PerRow()))
    empty = held.scale == 0
    numbers = torch.where(empty, torch.zeros((), dtype=torch.float32), held.qdata.float()).to(torch.float8_e4m3fn)
    return numbers, torch.where(empty, torch.ones_like(held.scale), held.scale)


def pack(nibbles: Tensor) -> Tensor:
    """-8 to 7 as bytes of two, the first in the low half, 8 added to each."""
    low, high = (nibbles.reshape(-1, 2) + 8).to(torch.uint8).unbind(1)
    return low | (high << 4)


def _quantized(weight: Tensor, config: Any) -> Any:
    """torchao's tensor of a weight, (rows, columns), by one of its configurations."""
    from torchao.quantization import quantize_

    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    quantize_(layer, config)
    return layer.weight
