"""What goes into a graph and what comes out: names, dtypes and shapes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
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

    def shape_beside(self, name: str, given: Mapping[str, Any]) -> tuple[int, ...]:
        """The shape that an input must have beside inputs that are given: `height/16` beside 65 rows of `height/8` is 33.

        Levels of a UNet round odd sizes up, so a quotient is rounded up. Raises InputError for a dimension that nothing
        given tells, KeyError for a name that is no input.
        """
        specs = {spec.name: spec for spec in self.inputs}
        sizes = _sizes({spec.shape: tuple(given[name].shape) for name, spec in specs.items() if name in given})
        return tuple(dim if isinstance(dim, int) else _evaluated(dim, sizes, name) for dim in specs[name].shape)

    def check(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Hold arrays against the inputs. Raises InputError listing every mismatch: names, dtypes, ranks, fixed and
        equally named dimensions."""
        problems = _mismatches(self.inputs, arrays)
        if problems:
            raise InputError("inputs do not fit the graph: " + "; ".join(problems))


def read_dim(dim: str) -> tuple[Fraction, tuple[str, ...]]:
    """A named dimension as a factor and the sizes that it multiplies: `3*height*width/4` is 3/4 of height and width."""
    product, _, denominator = dim.partition("/")
    first, *others = product.split("*")
    numerator, names = (int(first), others) if first.isdigit() else (1, [first, *others])
    return Fraction(numerator, int(denominator or 1)), tuple(names)


def _sizes(shapes: Mapping[tuple[Dim, ...], tuple[int, ...]]) -> dict[str, Fraction]:
    """The sizes that arrays of these named shapes tell."""
    sizes: dict[str, Fraction] = {}
    for dims, shape in shapes.items():
        for dim, size in zip(dims, shape, strict=True):
            factor, names = read_dim(dim) if isinstance(dim, str) else (Fraction(1), ())
            if len(names) == 1:
                sizes.setdefault(names[0], size / factor)
    return sizes


def _evaluated(dim: str, sizes: Mapping[str, Fraction], name: str) -> int:
    factor, names = read_dim(dim)
    missing = [size for size in names if size not in sizes]
    if missing:
        raise InputError(f"{name!r}: nothing given tells {', '.join(missing)}, of which its dimension {dim} is made")
    return math.ceil(factor * math.prod(sizes[size] for size in names))


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
