"""Arithmetic, comparisons and logic, number by number, with NumPy's broadcasting."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .table import kernel, named

UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "abs": torch.abs,
    "acos": torch.acos,
    "asin": torch.asin,
    "atan": torch.atan,
    "atanh": torch.atanh,
    "ceil": torch.ceil,
    "cos": torch.cos,
    "cosh": torch.cosh,
    "erf": torch.erf,
    "exp": torch.exp,
    "exp2": torch.exp2,
    "floor": torch.floor,
    "identity": lambda x: x,
    "logical_not": torch.logical_not,
    "round": torch.round,  # halves to the even neighbour, as NumPy
    "sign": torch.sign,
    "sin": torch.sin,
    "sinh": torch.sinh,
    "sqrt": torch.sqrt,
    "square": torch.square,
    "tan": torch.tan,
    "tanh": torch.tanh,
}
BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add,
    "equal": torch.eq,
    "floor_div": torch.floor_divide,  # towards minus infinity, as Python
    "greater": torch.gt,
    "greater_equal": torch.ge,
    "less": torch.lt,
    "less_equal": torch.le,
    "logical_and": torch.logical_and,
    "logical_or": torch.logical_or,
    "logical_xor": torch.logical_xor,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "mod": torch.remainder,  # the divisor's sign, as Python
    "mul": torch.mul,
    "not_equal": torch.ne,
    "pow": torch.pow,
    "sub": torch.sub,
}


def unary(name: str, function: Callable[[Tensor], Tensor]) -> None:
    @named(name)
    def compute(x: Tensor) -> Tensor:
        return function(x)


def _binary(name: str, function: Callable[[Tensor, Tensor], Tensor]) -> None:
    @named(name)
    def compute(x: Tensor, y: Tensor) -> Tensor:
        return function(x, y)


for _name, _function in UNARY.items():
    unary(_name, _function)
for _name, _pair in BINARY.items():
    _binary(_name, _pair)


@kernel
def real_div(x: Tensor, y: Tensor) -> Tensor:
    # whole numbers stay whole: the quotient is declared as one, without saying how it is rounded
    return torch.div(x, y) if x.is_floating_point() else torch.div(x, y, rounding_mode="trunc")


@kernel
def clip(x: Tensor, alpha: float, beta: float) -> Tensor:
    return torch.clamp(x, alpha, beta)


@kernel
def threshold(x: Tensor, alpha: float) -> Tensor:
    return torch.clamp(x, min=alpha).to(x.dtype)


@kernel
def inverse(x: Tensor, epsilon: float = 1e-4) -> Tensor:
    return 1 / (x + epsilon)


@kernel
def log(x: Tensor, epsilon: float = 1e-45) -> Tensor:
    return torch.log(x + epsilon)


@kernel
def rsqrt(x: Tensor, epsilon: float = 1e-12) -> Tensor:
    return torch.rsqrt(x + epsilon)


@kernel
def select(cond: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.where(cond.bool(), a, b)


CASTS = {
    "bool": torch.bool, "fp16": torch.float32, "fp32": torch.float32, "int8": torch.int8, "int16": torch.int16,
    "int32": torch.int32, "uint8": torch.uint8, "uint16": torch.int32,
}  # fmt: skip


@kernel
def cast(x: Tensor, dtype: str) -> Tensor:
    # floats to whole numbers towards zero; half precision is the evaluator's to round
    return x.to(CASTS[dtype])
