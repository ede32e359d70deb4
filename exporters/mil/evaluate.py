"""Run a program step by step, as it was written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ingot.runtimes.errors import ExportError, InputError

from .blobs import to_tensor
from .graph import STORAGE, Block, Constant, Operation, Value
from .package import Package, Port
from .rounding import round_to_half
from .table import KERNELS, Tensors

CONTROL_FLOW = {"cond": {"pred"}, "while_loop": {"loop_vars"}}
Waiting = Value | Constant | Operation
"""What a name stands for: a value, one on disk, or the operation that unpacks it."""
Watch = Callable[[str, Tensor], None]


class Program:
    """A Core ML package, opened to be evaluated on the CPU. Several threads may run it at once.

    `inputs` and `outputs` are (name, dtype, shape, ranges, enumerated) as the package declares them.
    """

    def __init__(self, package: Package) -> None:
        self.package = package
        self.inputs = package.inputs
        self.outputs = package.outputs
        problems = [*_unknown_operations(package.main), *_loose_ends(package)]
        if problems:
            raise ExportError(f"{package.path.name} cannot be evaluated: {'; '.join(problems)}")

    @property
    def operations(self) -> Counter[str]:
        """How many operations of each type it has, constants left out."""
        return Counter(operation.type for operation in self.package.main.walk())

    def run(
        self, inputs: Mapping[str, NDArray[Any]], float16: bool = False, watch: Watch | None = None
    ) -> dict[str, NDArray[Any]]:
        """Compute every output, in its declared dtype, from every input; floats may come in another float's dtype and
        integers in another integer's.

        Everything is computed in float32. With `float16` the result of each operation that the package declares as half
        precision is rounded to it, once; without, only the weights are as they were stored, so that an error of the graph
        and one of rounding can be told apart. `watch` is told every value by its name, inputs first, when it is made.
        Raises InputError for inputs that do not fit, ExportError for an operation that fails or gives another shape or kind
        of number than the package declares.
        """
        values = self._accepted(inputs)
        main = self.package.main
        with torch.no_grad():
            for name, value in zip(main.inputs, values, strict=True):
                if watch:
                    watch(name, value)
            found = _Run(float16, watch).block(main, values, {})
        named = dict(zip(main.outputs, found, strict=True))
        with np.errstate(over="ignore"):  # more than half precision holds is infinite, with or without a word
            return {port.name: np.array(named[port.name].numpy(), port.dtype) for port in self.outputs}

    def _accepted(self, inputs: Mapping[str, NDArray[Any]]) -> list[Tensor]:
        wanted = {port.name: port for port in self.inputs}
        problems = [f"unknown input {name!r} (it takes {', '.join(wanted)})" for name in inputs if name not in wanted]
        for port in self.inputs:
            problems += _misfit(port, inputs.get(port.name))
        if problems:
            raise InputError(f"inputs do not fit {self.package.path.name}: " + "; ".join(problems))
        return [
            to_tensor(np.asarray(inputs[name]).astype(wanted[name].dtype), self.package.input_types[name].dtype)
            for name in self.package.main.inputs
        ]


class _Run:
    """One evaluation."""

    def __init__(self, float16: bool, watch: Watch | None) -> None:
        self.float16 = float16
        self.watch = watch

    def block(self, block: Block, inputs: Sequence[Value], outer: Mapping[str, Waiting]) -> list[Tensor]:
        """The outputs of a block, whose steps see the values around it too."""
        known = {**outer, **block.constants, **block.compressed, **dict(zip(block.inputs, inputs, strict=True))}
        for operation, last in zip(block.operations, block.last_uses(), strict=True):
            results = self.operation(operation, known)
            known |= zip((result.name for result in operation.results), results, strict=True)
            for result, value in zip(operation.results, results, strict=True):
                if self.watch:
                    self.watch(result.name, value)
            for name in last:
                if name not in outer and not isinstance(known.get(name), Constant | Operation):
                    known.pop(name, None)
            del results
        return [self._tensor(name, known) for name in block.outputs]

    def operation(self, operation: Operation, known: Mapping[str, Waiting]) -> Tensors:
        """The results of one step, as declared."""
        try:
            arguments = {key: [self.value(item, known) for item in items] for key, items in operation.arguments.items()}
            found = self._computed(operation, arguments, known)
        except ExportError:
            raise
        except Exception as error:  # whatever torch says of arguments that do not fit each other
            raise ExportError(f"{operation.type} {operation.name!r} cannot be evaluated: {error}") from error
        results = _declared(found, operation)
        if not self.float16:
            return results
        given = [value for values in arguments.values() for value in values if isinstance(value, Tensor)]
        return tuple(
            round_to_half(value, given, operation.type == "cast") if result.type.dtype == "FLOAT16" else value
            for value, result in zip(results, operation.results, strict=True)
        )

    def _computed(
        self, operation: Operation, arguments: Mapping[str, Sequence[Value]], known: Mapping[str, Waiting]
    ) -> Tensors:
        if operation.type == "cond":
            chosen = operation.blocks[0 if bool(arguments["pred"][0]) else 1]
            return tuple(self.block(chosen, (), known))
        if operation.type == "while_loop":
            test, body = operation.blocks
            state: Sequence[Value] = arguments["loop_vars"]
            while bool(self.block(test, state, known)[0]):
                state = self.block(body, state, known)
            return tuple(value for value in state if isinstance(value, Tensor))
        return KERNELS[operation.type](arguments)

    def value(self, item: str | Constant, known: Mapping[str, Waiting]) -> Value:
        """What an argument is, read or unpacked now where it lies in the package."""
        found = known[item] if isinstance(item, str) else item
        if isinstance(found, Constant):
            return found.read()
        if isinstance(found, Operation):
            names = [result.name for result in found.results]
            return self.operation(found, known)[names.index(str(item))]
        return found

    def _tensor(self, name: str, known: Mapping[str, Waiting]) -> Tensor:
        found = self.value(name, known)
        assert isinstance(found, Tensor), name
        return found


def _declared(found: Tensors, operation: Operation) -> Tensors:
    """The results in their declared dtypes. Raises ExportError where they are not what the package declares."""
    if len(found) != len(operation.results):
        raise ExportError(
            f"{operation.type} {operation.name!r} gives {len(found)} results; the package declares {len(operation.results)}"
        )
    dtypes = [STORAGE[result.type.dtype].computed for result in operation.results]
    for value, result, dtype in zip(found, operation.results, dtypes, strict=True):
        if not result.type.admits(tuple(value.shape)) or _kind(value.dtype) != _kind(dtype):
            raise ExportError(
                f"{operation.type} {operation.name!r} gives {_kind(value.dtype)} {list(value.shape)}; the package declares "
                f"{result.type}"
            )
    return tuple(value.to(dtype) for value, dtype in zip(found, dtypes, strict=True))


def _kind(dtype: torch.dtype) -> str:
    if dtype == torch.bool:
        return "bool"
    return "float" if dtype.is_floating_point else "int"


def _misfit(port: Port, array: NDArray[Any] | None) -> list[str]:
    if array is None:
        return [f"missing input {port.name!r}"]
    problems = []
    both = np.floating if np.issubdtype(port.dtype, np.floating) else np.integer
    if not np.issubdtype(array.dtype, both):
        problems.append(f"{port.name!r} is {array.dtype}, not {port.dtype}")
    elif both is np.integer and array.size and np.any(array.astype(port.dtype) != array):
        problems.append(f"{port.name!r} holds numbers that {port.dtype} cannot")
    if not port.admits(array.shape):
        problems.append(f"{port.name!r} has shape {list(array.shape)}, not {port.sizes()}")
    return problems


def _unknown_operations(block: Block) -> list[str]:
    """Every operation that no kernel computes, and every input that its kernel does not know."""
    problems = []
    for operation in block.walk():
        if operation.type in CONTROL_FLOW:
            found = [f"missing input {name!r}" for name in CONTROL_FLOW[operation.type] - set(operation.arguments)]
        elif operation.type not in KERNELS:
            found = ["unknown operation"]
        else:
            found = KERNELS[operation.type].problems(operation)
        unknown = (f"{result.name} is {result.type.dtype}" for result in operation.results)
        found += [text for text in unknown if text.split()[-1] not in STORAGE]
        problems += [f"{operation.type} {operation.name!r}: {problem}" for problem in found]
    return problems


def _loose_ends(package: Package) -> list[str]:
    """Declared inputs and outputs that the program does not have, and values that are used before they are made."""
    inputs, outputs = {port.name for port in package.inputs}, {port.name for port in package.outputs}
    problems = [
        f"the program takes {name!r}, which the package does not declare"
        for name in package.main.inputs
        if name not in inputs
    ]
    problems += [
        f"the package declares {name!r}, which the program does not take" for name in inputs - set(package.main.inputs)
    ]
    problems += [
        f"the package declares {name!r}, which the program does not give"
        for name in outputs - set(package.main.outputs)
    ]
    return problems + [f"{name!r} is used before it is made" for name in _undefined(package.main, set())]


def _undefined(block: Block, outer: set[str]) -> list[str]:
    known = outer | set(block.inputs) | set(block.constants) | set(block.compressed)
    missing = []
    for operation in [*{id(op): op for op in block.compressed.values()}.values(), *block.operations]:
        own = {item for items in operation.arguments.values() for item in items if isinstance(item, str)}
        missing += sorted(own - known)
        for inner in operation.blocks:
            missing += _undefined(inner, known)
        known |= {result.name for result in operation.results}
    return missing + sorted(set(block.outputs) - known)
