"""The table of MIL operations that the evaluator computes: a kernel is a function whose parameters are named as the
operation's inputs are, with MIL's own defaults, and annotated with what each input must be converted to."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, get_type_hints

from torch import Tensor

from .graph import Operation, Value

Ints = tuple[int, ...]
Bools = tuple[bool, ...]
Tensors = tuple[Tensor, ...]
Function = TypeVar("Function", bound=Callable[..., Tensor | Tensors])


def _one(values: Sequence[Value]) -> Any:
    (value,) = values
    return value


def _numbers(values: Sequence[Any]) -> list[Any]:
    return [number for value in values for number in value.flatten().tolist()]


CONVERSIONS: dict[Any, Callable[[Sequence[Value]], Any]] = {
    Tensor: _one,
    Tensors: tuple,
    str: lambda values: str(_one(values)),
    int: lambda values: int(_one(values).item()),
    float: lambda values: float(_one(values).item()),
    bool: lambda values: bool(_one(values).item()),
    Ints: lambda values: tuple(int(number) for number in _numbers(values)),
    Bools: lambda values: tuple(bool(number) for number in _numbers(values)),
}


@dataclass(frozen=True)
class Kernel:
    """What computes an operation, and how each of its inputs reaches it."""

    function: Callable[..., Tensor | Tensors]
    conversions: Mapping[str, Callable[[Sequence[Value]], Any]]
    required: frozenset[str]

    def problems(self, operation: Operation) -> list[str]:
        """What of the operation this kernel does not know, in words."""
        unknown = [name for name in operation.arguments if name not in self.conversions]
        missing = sorted(self.required - set(operation.arguments))
        return [f"unknown input {name!r}" for name in unknown] + [f"missing input {name!r}" for name in missing]

    def __call__(self, arguments: Mapping[str, Sequence[Value]]) -> Tensors:
        found = self.function(**{name: self.conversions[name](values) for name, values in arguments.items()})
        return found if isinstance(found, tuple) else (found,)


KERNELS: dict[str, Kernel] = {}


def kernel(function: Function) -> Function:
    """Register a kernel under its function's name."""
    return named(function.__name__)(function)


def named(name: str) -> Callable[[Function], Function]:
    """Register a kernel under a name that Python or another kernel has taken."""

    def register(function: Function) -> Function:
        assert name not in KERNELS, name
        hints = get_type_hints(function)
        parameters = inspect.signature(function).parameters
        KERNELS[name] = Kernel(
            function,
            {parameter: CONVERSIONS[_without_none(hints[parameter])] for parameter in parameters},
            frozenset(key for key, value in parameters.items() if value.default is inspect.Parameter.empty),
        )
        return function

    return register


def _without_none(hint: Any) -> Any:
    """The type of an optional parameter."""
    options = getattr(hint, "__args__", ())
    if type(None) in options:
        (hint,) = (option for option in options if option is not type(None))
    return hint
