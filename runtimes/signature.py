"""What goes into a graph and what comes out: names, dtypes and shapes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from .errors import InputError

Dim = int | str
"""A number, or the name of the size that explains a dimension: `batch`, `2*batch`, `height/8`."""


class TensorSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One input or output: its dtype by NumPy's name (`float32`, `int64`, `bfloat16`), its shape of numbers and names."""

    name: str
    dtype: str
    shape: tuple[Dim, ...]


class Signature(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The inputs and outputs of a graph, in the graph's order."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def admits(self, inputs: Mapping[str, Any]) -> bool:
        """Whether inputs have the numbers that the shapes fix; by their `.shape` alone."""
        return all(
            isinstance(dim, str) or dim == size
            for spec in self.inputs
            for dim, size in zip(spec.shape, inputs[spec.name].shape, strict=True)
        )

    def check(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Hold arrays against the inputs. Raises InputError listing every mismatch: names, dtypes, ranks, fixed and
        equally named dimensions."""
        problems = _mismatches(self.inputs, arrays)
        if problems:
            raise InputError("inputs do not fit the graph: " + "; ".join(problems))


def _mismatches(specs: tuple[TensorSpec, ...], arrays: Mapping[str, NDArray[Any]]) -> list[str]:
    wanted = {spec.name: spec for spec in specs}
    problems = [f"unknown input {name!r} (it takes {', '.join(wanted)})" for name in arrays if name not in wanted]
    sizes: dict[str, int] = {}
    for name, spec in wanted.items():
        if name not in arrays:
            problems.append(f"missing input {name!r}")
            continue
        array = arrays[name]
        if array.dtype != np.dtype(spec.dtype):
            problems.append(f"{name!r} is {array.dtype}, not {spec.dtype}")
        fits = len(array.shape) == len(spec.shape) and all(
            got == (sizes.setdefault(dim, got) if isinstance(dim, str) else dim)
            for got, dim in zip(array.shape, spec.shape, strict=True)
        )
        if not fits:
            problems.append(f"{name!r} has shape {list(array.shape)}, not {list(spec.shape)}")
    return problems
