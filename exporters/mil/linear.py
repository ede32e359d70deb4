"""Products of matrices."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .table import Tensors, kernel, named


@named("linear")
def linear_(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.linear(x, weight, bias)


@kernel
def matmul(x: Tensor, y: Tensor, transpose_x: bool = False, transpose_y: bool = False) -> Tensor:
    left = x.transpose(-1, -2) if transpose_x and x.dim() > 1 else x
    right = y.transpose(-1, -2) if transpose_y and y.dim() > 1 else y
    return torch.matmul(left, right)


@kernel
def einsum(values: Tensors, equation: str) -> Tensor:
    """Where MIL's one equation, "nchw,nwhu->nchu", makes weights of attention, the softmax goes along c: the product is
    turned round so that c lies together in memory, where the softmax is faster."""
    (left, right), places = values, equation.replace(" ", "")
    given, result = places.split("->")
    first, second = given.split(",")
    turned = f"{second},{first}->{result[:-3]}{result[-2]}{result[-1]}{result[-3]}"
    found: Tensor = torch.einsum(turned, right, left)
    return found.movedim(-1, -3)


@kernel
def scaled_dot_product_attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value, attn_mask)
