"""Numbers for the named dimensions of a graph, given when it is opened: what any engine may ask."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction

from ..errors import InputError, unknown
from ..signature import Dim, Signature, TensorSpec

AXES = ("batch", "height", "width")


def resized(signature: Signature, sizes: Mapping[str, int]) -> Signature:
    """The signature with numbers for the dimensions that `sizes` determines.

    `height/8` of a picture 512 pixels high is 64; what does not divide is rounded up, as strided convolutions do. Raises
    InputError for a name that no dimension has.
    """
    specs = (*signature.inputs, *signature.outputs)
    names = {name for spec in specs for dim in spec.shape if isinstance(dim, str) for name in _factors(dim)[1]}
    for name, size in sizes.items():
        if name not in {*names, *AXES}:
            raise unknown("size", name, {*names, *AXES})
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise InputError(f"sizes: {name}={size!r}: a whole number of at least 1 is needed")

    def fixed(spec: TensorSpec) -> TensorSpec:
        return TensorSpec(spec.name, spec.dtype, tuple(_evaluate(dim, sizes) for dim in spec.shape))

    return Signature(tuple(map(fixed, signature.inputs)), tuple(map(fixed, signature.outputs)))


def _evaluate(dim: Dim, sizes: Mapping[str, int]) -> Dim:
    if isinstance(dim, int):
        return dim
    factor, names = _factors(dim)
    if not all(name in sizes for name in names):
        return dim
    return math.ceil(factor * math.prod(sizes[name] for name in names))


def _factors(dim: str) -> tuple[Fraction, list[str]]:
    """`3*height*width/64` as 3/64 and its names."""
    text, _, divisor = dim.partition("/")
    parts = text.split("*")
    numbers = [int(part) for part in parts if part.isdigit()]
    return Fraction(math.prod(numbers), int(divisor or 1)), [part for part in parts if not part.isdigit()]
