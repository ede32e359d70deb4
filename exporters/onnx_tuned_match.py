"""What a fusion asks of a graph: who made a value, what a constant holds, what a size is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

CONTRIB = "com.microsoft"

Size = int | str | None
"""A number, or a name that shape inference gave to this size alone; None where nothing is known."""


class Refused(Exception):  # noqa: N818  # not an error: the graph stays as it is at this place
    """Why a place that looks like a fusion's is left as it is."""


@dataclass(frozen=True)
class Outcome:
    """How often a fusion was applied, and why it was not where it looked as if it could be."""

    applied: int
    refused: tuple[str, ...] = ()


def made_by(value: ir.Value | None, *operators: str, domain: str = "") -> ir.Node | None:
    """The node that made the value, if it is one of these operators."""
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type in operators and node.domain == domain else None


def constant(value: ir.Value | None) -> NDArray[Any] | None:
    """What an initializer holds; None for anything that is computed. Weights are read: ask for small ones only."""
    if value is None or not value.is_initializer() or value.const_value is None:
        return None
    return np.asarray(value.const_value.numpy())


def scalar(value: ir.Value | None) -> float | None:
    """The number that an initializer of one element holds."""
    if value is None or value.const_value is None or value.const_value.size != 1 or not value.is_initializer():
        return None
    return float(value.const_value.numpy().reshape(()))


def attribute(node: ir.Node, name: str, default: Any = None) -> Any:
    """A node's attribute, tuples for lists."""
    found = node.attributes.get(name)
    if found is None:
        return default
    return tuple(found.value) if isinstance(found.value, (list, tuple)) else found.value


def permutes(node: ir.Node | None, *axes: int) -> bool:
    """Whether this is a Transpose by these axes."""
    return node is not None and attribute(node, "perm") == axes


def only_use(value: ir.Value) -> ir.Node | None:
    """The one node that takes the value, None if there are several or it is an output of the graph."""
    uses = value.consumers()
    return uses[0] if len(uses) == 1 and not value.is_graph_output() else None


def rank(value: ir.Value) -> int | None:
    """How many axes the value has, where that is known."""
    return None if value.shape is None else len(value.shape)


def size(value: ir.Value, axis: int) -> Size:
    """A value's size along an axis; None where nothing is known."""
    if value.shape is None:
        return None
    dim = value.shape[axis]
    return dim.value if isinstance(dim, ir.SymbolicDim) else dim


def equal(one: ir.Value, other: ir.Value, axis: int) -> bool:
    """Whether two values are known to have one size along an axis."""
    return size(one, axis) is not None and size(one, axis) == size(other, axis)


def sizes(value: ir.Value | None) -> list[Size] | None:
    """What a vector of sizes holds, as `Shape`, `Slice` and `Concat` put it together; None where it cannot be said."""
    if value is not None and value.is_initializer():
        held = constant(value)
        return [int(number) for number in held] if held is not None and held.ndim == 1 else None
    node = made_by(value, "Shape", "Slice", "Concat")
    if node is None:
        return None
    if node.op_type == "Slice":
        return _sliced(node)
    if node.op_type == "Concat":
        parts = [sizes(part) for part in node.inputs]
        return None if None in parts else [entry for part in parts for entry in part or ()]
    source = node.inputs[0]
    if source is None or source.shape is None:
        return None
    found = [size(source, axis) for axis in range(len(source.shape))]
    return found[attribute(node, "start", 0) : attribute(node, "end")]


def _sliced(node: ir.Node) -> list[Size] | None:
    whole, bounds = sizes(node.inputs[0]), [constant(value) for value in node.inputs[1:]]
    if whole is None or len(bounds) > 3 or any(bound is None or bound.size != 1 for bound in bounds):
        return None  # with steps, or with bounds that are computed
    start, end = (int(bound.reshape(())) for bound in bounds[:2] if bound is not None)
    return whole[start:end]


def take_over(new: ir.Value, old: ir.Value) -> None:
    """Put one value in another's place: in its uses, as an output of the graph, and under its name."""
    new.name, old.name = old.name, f"{old.name}_before"
    new.type, new.shape = old.type, old.shape
    old.replace_all_uses_with(new, replace_graph_outputs=True)


def is_finite(value: ir.Value | None) -> bool:
    """Whether no element can be infinite, as far as constants tell."""
    node = made_by(value, "Where")
    if node is not None:
        return all(is_finite(branch) for branch in node.inputs[1:])
    node = made_by(value, "Expand", "Cast", "Unsqueeze", "Reshape")
    if node is not None:
        return is_finite(node.inputs[0])
    held = constant(value)
    return held is not None and held.dtype.kind == "f" and math.isfinite(float(np.abs(held).max(initial=0)))
