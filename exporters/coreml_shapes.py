"""Which sizes a package takes: one, several by name, or a range of each open dimension."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from ingot.runtimes.errors import ExportError, InputError
from ingot.runtimes.signature import Dim, Signature, TensorSpec

from .component import Component

MOST_ROWS = 8
Range = tuple[int, int, int]
"""Least, most, and the one that a package is opened with."""


@dataclass(frozen=True)
class Shapes:
    """What an export writes.

    `signature` has numbers for what is fixed. `ranges` are by the names that its dimensions still have; where `enumerated`
    has shapes for an input, it takes those alone.
    """

    signature: Signature
    ranges: dict[str, Range]
    enumerated: dict[str, tuple[tuple[int, ...], ...]]

    @property
    def fixed(self) -> bool:
        """Whether there is one size only."""
        return not self.ranges and not self.enumerated


def shapes(
    component: Component, *, static: bool, sizes: Sequence[Sequence[int]] | None, largest: int, several_inputs: bool
) -> Shapes:
    """The shapes of a component's graph: one size where `static`, else `sizes` in pixels, else ranges up to `largest`.

    Fixed are the sizes of the first recorded call, and the rows of its batch for `sizes` too. `several_inputs` is whether
    more than one input may have a list of shapes. Raises InputError for sizes that cannot be had.
    """
    recorded = _recorded(component)
    if static:
        return Shapes(_with(component.signature, recorded), {}, {})
    if sizes is not None:
        return _enumerated(component, recorded, [_pair(size) for size in sizes], several_inputs)
    ranges = {name: _range(name, component, recorded, largest) for name in _open(component.signature)}
    return Shapes(component.signature, ranges, {})


def _enumerated(
    component: Component, recorded: dict[str, int], sizes: list[tuple[int, int]], several_inputs: bool
) -> Shapes:
    spatial = [name for name in _open(component.signature) if name != "batch"]
    fixed = {name: size for name, size in recorded.items() if name not in spatial}
    signature = _with(component.signature, fixed)
    if not spatial:
        return Shapes(signature, {}, {})
    dims = [{name: _value(name, height, width) for name in spatial} for height, width in dict.fromkeys(sizes)]
    here = {name: recorded[name] for name in spatial}
    if here not in dims:
        raise InputError(
            f"sizes={[list(size) for size in sizes]} leave out the size that {component.role} is recorded at and checked "
            f"with ({_words(here)}): give one of them as the export's height and width"
        )
    if len(dims) == 1:
        return Shapes(_with(component.signature, recorded), {}, {})
    dims.sort(key=lambda one: one != here)  # the recorded one first: it is what a package is opened with
    changing = {spec.name: spec.shape for spec in signature.inputs if any(isinstance(dim, str) for dim in spec.shape)}
    if len(changing) > 1 and not several_inputs:
        raise InputError(
            f"{component.role} has {len(changing)} inputs that change with the size ({', '.join(changing)}); below iOS18 "
            "Core ML takes a list of sizes for one: deployment_target=iOS18, or export with --static"
        )
    return Shapes(signature, {}, {name: tuple(_filled(s, one) for one in dims) for name, s in changing.items()})


def _recorded(component: Component) -> dict[str, int]:
    """The size of every open dimension in the first recorded call."""
    call = component.calls[0]
    specs = [(spec, call.inputs) for spec in component.signature.inputs]
    specs += [(spec, call.outputs) for spec in component.signature.outputs]
    return {
        dim: size
        for spec, tensors in specs
        for dim, size in zip(spec.shape, tensors[spec.name].shape, strict=True)
        if isinstance(dim, str)
    }


def _open(signature: Signature) -> list[str]:
    return list(dict.fromkeys(dim for spec in signature.inputs for dim in spec.shape if isinstance(dim, str)))


def _range(name: str, component: Component, recorded: Mapping[str, int], largest: int) -> Range:
    """From the smallest that the model was seen with (one row, for a batch) to the largest asked for."""
    seen = [
        size
        for call in component.calls
        for spec in component.signature.inputs
        for size, dim in zip(call.inputs[spec.name].shape, spec.shape, strict=True)
        if dim == name
    ]
    most = MOST_ROWS if name == "batch" else _value(name, largest, largest)
    if name != "batch" and most < max(seen):
        raise InputError(
            f"largest={largest} pixels are fewer than {component.role} was recorded with ({name}={max(seen)})"
        )
    return 1 if name == "batch" else min(seen), max(most, *seen), recorded[name]


def _value(name: str, height: int, width: int) -> int:
    """What a dimension such as `height/8` is for a picture of these pixels."""
    text, _, divisor = name.partition("/")
    factors = text.split("*")
    known = {"height": height, "width": width}
    if any(factor not in known and not factor.isdigit() for factor in factors):
        raise ExportError(f"the dimension {name} does not follow from the picture's size: export with --static")
    value = Fraction(math.prod(known.get(factor) or int(factor) for factor in factors), int(divisor or 1))
    if value.denominator > 1:
        raise InputError(f"{height}x{width} pixels are no size of this model: {name} is not a whole number")
    return int(value)


def _pair(size: object) -> tuple[int, int]:
    if isinstance(size, (list, tuple)) and len(size) == 2 and all(type(side) is int and side > 0 for side in size):
        return size[0], size[1]
    raise InputError(f"sizes are pairs of height and width in pixels, such as [[512, 512], [768, 512]], not {size!r}")


def _with(signature: Signature, sizes: Mapping[str, int]) -> Signature:
    def fix(spec: TensorSpec) -> TensorSpec:
        shape: tuple[Dim, ...] = tuple(sizes.get(dim, dim) if isinstance(dim, str) else dim for dim in spec.shape)
        return TensorSpec(spec.name, spec.dtype, shape)

    return Signature(tuple(map(fix, signature.inputs)), tuple(map(fix, signature.outputs)))


def _filled(shape: tuple[Dim, ...], sizes: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(sizes[dim] if isinstance(dim, str) else dim for dim in shape)


def _words(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{name} = {size}" for name, size in sizes.items())
