"""What an OpenVINO graph has that can be quantized, by the model's own names."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import openvino as ov

from ingot.runtimes.errors import ExportError, InputError

from .scheme import Layer

CONVOLUTIONS = (
    "Convolution", "GroupConvolution", "ConvolutionBackpropData", "GroupConvolutionBackpropData",
)  # fmt: skip
KINDS = {"MatMul": "linear", "Gather": "embedding", **dict.fromkeys(CONVOLUTIONS, "conv")}
FLOATS = (ov.Type.f32, ov.Type.f16)
# what may stand between a weight and where it is used: half precision is converted, a grouped convolution reshaped
PASSING = ("Convert", "Reshape", "FakeQuantize")


@dataclass
class Place:
    """A layer, its weight where it has one, and the operations that compute it by their names."""

    layer: Layer
    constant: ov.Node | None = field(compare=False, repr=False)
    operations: list[str] = field(default_factory=list)


def places(model: ov.Model, *, products: bool = False) -> list[Place]:
    """Every layer with a weight, in the graph's order, and with `products` the matrix products of two activations too.

    A weight that several operations share is one layer. It has the weight's name; a constant that has no name of a
    parameter is called by its first operation's.
    """
    found: dict[str, Place] = {}
    for node in model.get_ordered_ops():
        kind = KINDS.get(node.get_type_name())
        if kind is None:
            continue
        constant = weight(node)
        if constant is None:
            if products and kind == "linear":
                name = node.get_friendly_name()
                found[name] = Place(Layer(name.removesuffix("/MatMul"), "matmul", 0), None, [name])
            continue
        key = constant.get_friendly_name()
        if key not in found:
            parameters = int(np.prod(list(constant.get_output_shape(0))))
            found[key] = Place(Layer(_module(key, node), kind, parameters), constant)
        found[key].operations.append(node.get_friendly_name())
    return _distinct(found.values())


def weight(node: ov.Node) -> ov.Node | None:
    """The constant that an operation takes for its weight; None for a product of activations and a gather of shapes."""
    ports = {"MatMul": (1, 0), "Gather": (0,)}.get(node.get_type_name(), (1,))
    for port in ports:
        source = node.input_value(port).get_node()
        while source.get_type_name() in PASSING:
            source = source.input_value(0).get_node()
        if source.get_type_name() == "Constant" and source.get_element_type() in FLOATS:
            return source
    return None


def weight_port(node: ov.Node) -> int:
    """Where an operation that has a weight takes it."""
    if node.get_type_name() == "Gather":
        return 0
    second = node.input_value(1).get_node()
    while second.get_type_name() in PASSING:
        second = second.input_value(0).get_node()
    return 1 if second.get_type_name() == "Constant" else 0


def chosen(found: list[Place], keep: Collection[str], path: Path) -> list[Place]:
    """The places with these names. Raises InputError naming those that the graph does not have."""
    by_name = {place.layer.name: place for place in found}
    missing = sorted(set(keep) - set(by_name))
    if missing:
        raise InputError(
            f"keep: {path} has no layer {', '.join(map(repr, missing[:5]))}; it has {len(by_name)}, among them "
            + ", ".join(list(by_name)[:5])
        )
    return [by_name[name] for name in sorted(keep)]


def operations(found: Iterable[Place]) -> list[str]:
    """The names of the operations that compute these layers."""
    return [name for place in found for name in place.operations]


def require_finite(found: Iterable[Place], path: Path) -> None:
    """Raises ExportError naming the weights with a NaN or an infinity: their scale would be one too."""
    bad = [place.layer.name for place in found if not np.isfinite(largest(place))]
    if bad:
        raise ExportError(
            f"{path} cannot be quantized: weights that are not finite in {', '.join(bad[:5])}"
            + (f" and {len(bad) - 5} more" if len(bad) > 5 else "")
            + "; export a checkpoint with sound weights"
        )


def largest(place: Place) -> float:
    """The largest magnitude of a layer's weights, NaN where one is; 0 for a layer without any."""
    if place.constant is None:
        return 0.0
    data = place.constant.get_data()
    return float(np.maximum(-data.min(initial=0.0), data.max(initial=0.0)))


def _module(constant: str, node: ov.Node) -> str:
    name = constant.removesuffix("_compressed")  # what OpenVINO adds to a constant that it stores in float16
    if name.endswith(".weight"):
        return name.removesuffix(".weight")
    return node.get_friendly_name() if name.rpartition("/")[2].startswith("Constant") else name


def _distinct(found: Iterable[Place]) -> list[Place]:
    """The places with a number after those names that came before."""
    seen: dict[str, int] = defaultdict(int)
    made = []
    for place in found:
        seen[place.layer.name] += 1
        if seen[place.layer.name] > 1:
            name = f"{place.layer.name}#{seen[place.layer.name]}"
            place.layer = Layer(name, place.layer.kind, place.layer.parameters)
        made.append(place)
    return made
