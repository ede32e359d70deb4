"""The layers of a `.pt2` program whose weights can be quantized, by the model's own names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ._torch_archive import Program
from .scheme import Layer

OPERATORS = {
    "torch.ops.aten.linear.default": ("weight", "linear"),
    "torch.ops.aten.conv1d.default": ("weight", "conv"),
    "torch.ops.aten.conv2d.default": ("weight", "conv"),
    "torch.ops.aten.conv3d.default": ("weight", "conv"),
    "torch.ops.aten.embedding.default": ("weight", "embedding"),
}
LEAST = 2048  # weights below this stay as they are: nothing is won with them
PREFIX = "source."  # what a component's trace calls the module in it
FLOATS = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Weight:
    """A parameter that layers of one kind compute with: the graph's and the archive's names for it, and its calls."""

    value: str
    parameter: str
    kind: str
    tensor: Tensor
    calls: tuple[str, ...]

    @property
    def name(self) -> str:
        """The module's."""
        return self.parameter.removeprefix(PREFIX).removesuffix(".weight")

    @property
    def layer(self) -> Layer:
        """As a scheme knows it."""
        return Layer(self.name, self.kind, self.tensor.numel())


def weights_of(program: Program) -> list[Weight]:
    """The large weights of linear layers, convolutions and embeddings, in the order of the graph."""
    users: dict[str, list[tuple[str | None, str]]] = {}
    for node in program.nodes:
        expected, kind = OPERATORS.get(node["target"], ("", ""))
        for given in node["inputs"]:
            for value in _values(given["arg"]):
                users.setdefault(value, []).append((kind if given["name"] == expected else None, node["name"]))
    parameters = program.parameters()
    found = []
    for value, uses in users.items():
        kinds = {kind for kind, _ in uses}
        only = kinds.pop() if len(kinds) == 1 else None
        held = program.tensors.get(parameters.get(value, ""))
        if only and held is not None and held.dtype in FLOATS and held.dim() >= 2 and held.numel() >= LEAST:
            found.append(Weight(value, parameters[value], only, held, tuple(name for _, name in uses)))
    return found


def _values(argument: Any) -> list[str]:
    """The names of tensors in an argument."""
    ((kind, what),) = argument.items()
    if kind == "as_tensor":
        return [what["name"]]
    if kind == "as_tensors":
        return [one["name"] for one in what]
    if kind == "as_optional_tensors":
        return [one["as_tensor"]["name"] for one in what if "as_tensor" in one]
    return []
