"""A `.pt2` program as a module: its JSON graph read into torch.fx, operator by operator.

torch.export.load makes the same module in seconds where this takes a fraction of one: it rebuilds what every
intermediate's shape is in terms of the inputs', which nobody asks for at run time. And it believes the file: operators
are looked up by dotted path from the module `torch` (`torch.os.system` is one), expressions are evaluated, guards and
names become Python source, and so they do in torch.fx. Here an operator is one of a list of ATen's, some behind checks
of Ingot's own (`_torch_checked`), or simple arithmetic on sizes, its keywords are those of its schema, constants are
numbers and strings, a name is only a key, and anything else is refused.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node

from ..errors import EngineError
from ._torch_archive import DTYPES, Archive
from ._torch_checked import checked
from ._torch_operators import ALLOWED
from ._weights import Change

SCHEMA = 8  # the major number of torch/_export/serde/schema.py; torch 2.13 writes 8.20, others were not tried
LAYOUTS = {7: torch.strided}
MEMORY_FORMATS = {
    1: torch.contiguous_format, 2: torch.channels_last, 3: torch.channels_last_3d, 4: torch.preserve_format,
}  # fmt: skip
SIZES = {
    **{f"_operator.{name}": getattr(operator, name)
       for name in ("add", "sub", "mul", "floordiv", "truediv", "mod", "neg", "pow", "eq", "ne", "le", "lt", "ge", "gt", "and_", "or_")},
    **{f"torch.{name}": getattr(torch, name) for name in ("sym_max", "sym_min", "sym_int", "sym_float", "sym_not", "sym_ite")},
    "math.trunc": math.trunc,
}  # fmt: skip
OPERATOR = re.compile(r"torch\.ops\.aten\.(\w+)\.(\w+)")
PLAIN: dict[str, tuple[type, ...]] = {
    "as_int": (int,), "as_float": (float, int), "as_bool": (bool,), "as_string": (str,),
    "as_ints": (int,), "as_floats": (float, int), "as_bools": (bool,),
}  # fmt: skip
NOT_FINITE = {"Infinity": math.inf, "-Infinity": -math.inf, "NaN": math.nan}  # JSON has no such numbers


def read_program(
    archive: Archive,
    *,
    device: str = "cpu",
    no_float64: bool = False,
    changes: Mapping[str, Change] = MappingProxyType({}),
) -> GraphModule:
    """The program as a module on a device, taking and giving tensors in the program's own order.

    Weights are those of the mapped file on the CPU, copies elsewhere, and new ones where `changes`, by the checkpoint's
    names, make others of them. `no_float64` makes float32 of every float64, for
    devices without it. Raises EngineError for an archive that holds anything but ATen operators and tensors.
    """
    program = archive.json("models/model.json")
    try:
        version = program["schema_version"]["major"]
        if version != SCHEMA:
            raise EngineError(
                f"{archive.file} has version {version} of torch's export schema, Ingot reads {SCHEMA}: export again"
            )
        tensors = archive.tensors()
        tensors |= {
            name: _changed(tensors[name], changes[_parameter(name)]) for name in tensors if _parameter(name) in changes
        }
        return _Reader(archive.file, device, no_float64).module(program["graph_module"], tensors)
    except (KeyError, TypeError, IndexError, AttributeError, ValueError, RecursionError) as error:
        raise EngineError(f"{archive.file} is not a program as torch.export writes it: {error!r}") from error


def float_weights(archive: Archive) -> dict[str, tuple[int, ...]]:
    """The shapes of a program's float weights, by the checkpoint's names."""
    return {
        _parameter(name): tuple(tensor.shape)
        for name, tensor in archive.tensors().items()
        if tensor.is_floating_point()
    }


def _parameter(name: str) -> str:
    """What the checkpoint calls a weight: exporters.component's FlatModule puts `source.` before it."""
    return name.removeprefix("source.")


def _changed(tensor: Tensor, change: Change) -> Tensor:
    """A weight after a change, in its own dtype: NumPy has no bfloat16, so the last rounding is torch's."""
    return torch.from_numpy(change(tensor.float().numpy())).to(tensor.dtype)


def integer_product(first: Tensor, second: Tensor) -> Tensor:
    """A matrix product of int8: torch's own on CUDA, which takes more than 16 rows; else in float32, which is exact to 1,023
    columns, where sums reach 2^24, and rounded as floats are after.

    torch's own took 20 times as long on a CPU without dot products of integers (AVX2); torchao does the same there.
    """
    if first.is_cuda and first.shape[0] > 16:
        return torch._int_mm(first, second)
    return torch.mm(first.float(), second.float())


def _called(function: Any) -> Any:
    """What is called where a program names this function."""
    if not isinstance(function, torch._ops.OpOverload):
        return function
    return integer_product if function is torch.ops.aten._int_mm.default else checked(function)


class _Reader:
    """Turns one graph; `nodes` are the values made so far, by the names that the file has for them."""

    def __init__(self, file: Path, device: str, no_float64: bool) -> None:
        self.file = file
        self.device = device
        self.dtypes = {**DTYPES, 8: torch.float32} if no_float64 else DTYPES
        self.graph = Graph()
        self.nodes: dict[str, Node] = {}

    def module(self, program: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> GraphModule:
        """The module with its weights on the device."""
        root = nn.Module()
        for number, spec in enumerate(program["signature"]["input_specs"]):
            ((kind, what),) = spec.items()
            if kind == "user_input":
                self.nodes[what["arg"]["as_tensor"]["name"]] = self.graph.placeholder(f"input_{number}")
            elif kind in ("parameter", "buffer", "tensor_constant"):
                held = tensors[what[f"{kind}_name"]]
                dtype = torch.float32 if held.dtype == torch.float64 and self.dtypes[8] == torch.float32 else held.dtype
                root.register_buffer(f"weight_{number}", held.to(self.device, dtype))
                self.nodes[what["arg"]["name"]] = self.graph.get_attr(f"weight_{number}")
            else:
                raise EngineError(f"{self.file}: inputs of kind {kind!r} are not opened")
        for node in program["graph"]["nodes"]:
            self._call(node)
        self.graph.output(tuple(self._value(output) for output in program["graph"]["outputs"]))
        return GraphModule(root, self.graph)

    def _call(self, node: Mapping[str, Any]) -> None:
        function = self._function(node["target"])
        values = [(entry["kind"], entry["name"], self._value(entry["arg"])) for entry in node["inputs"]]
        positional = tuple(value for kind, _, value in values if kind != 2)
        named = {name: value for kind, name, value in values if kind == 2}
        self._check_names(node["target"], function, named)
        made = self.graph.call_function(_called(function), positional, named)
        outputs = node["outputs"]
        if len(outputs) == 1 and "as_tensors" not in outputs[0]:
            self._name(outputs[0], made)
            return
        several = outputs[0]["as_tensors"] if len(outputs) == 1 else [output.get("as_tensor") for output in outputs]
        for index, output in enumerate(several):
            if output is not None:  # an output that is None, as some backward-only ones are
                self.nodes[output["name"]] = self.graph.call_function(operator.getitem, (made, index))

    def _function(self, target: str) -> Any:
        if target in SIZES:
            return SIZES[target]
        found = OPERATOR.fullmatch(target)
        function = getattr(torch.ops.aten, found[1], None) if found and f"{found[1]}.{found[2]}" in ALLOWED else None
        function = getattr(function, found[2], None) if found else None
        if not isinstance(function, torch._ops.OpOverload) or function._schema.is_mutable:
            raise EngineError(
                f"{self.file}: the operator {target!r} is not one that Ingot opens; export the model again with this "
                "version, or report the operator if a model of yours needs it"
            )
        return function

    def _check_names(self, target: str, function: Any, named: Mapping[str, Any]) -> None:
        """Refuse keywords that the operator does not have: torch.fx writes them into Python source as they are."""
        known = (
            {argument.name for argument in function._schema.arguments}
            if isinstance(function, torch._ops.OpOverload)
            else set()
        )
        strange = sorted(repr(name) for name in named if name not in known)
        if strange:
            raise EngineError(
                f"{self.file}: the operator {target!r} has no argument {', '.join(strange)}; export again"
            )

    def _name(self, output: Mapping[str, Any], node: Node) -> None:
        ((kind, what),) = output.items()
        if kind != "as_none":
            self.nodes[what["name" if kind == "as_tensor" else "as_name"]] = node

    def _value(self, argument: Mapping[str, Any]) -> Any:
        """What an argument stands for: a node, a number, or something of torch's own."""
        ((kind, what),) = argument.items()
        if kind in PLAIN:
            return [self._plain(kind, item) for item in what] if kind.endswith("s") else self._plain(kind, what)
        if kind in ("as_tensor", "as_sym_int", "as_sym_bool", "as_sym_float", "as_optional_tensor"):
            return self._one(what)
        if kind in ("as_tensors", "as_sym_ints", "as_sym_bools", "as_sym_floats", "as_optional_tensors"):
            return [self._one(item) for item in what]
        match kind:
            case "as_none":
                return None
            case "as_scalar_type":
                return self.dtypes[what]
            case "as_memory_format":
                return MEMORY_FORMATS[what]
            case "as_layout":
                return LAYOUTS[what]
            case "as_device":
                return torch.device(self.device)
        raise EngineError(f"{self.file}: arguments of kind {kind!r} are not opened")

    def _one(self, item: Mapping[str, Any]) -> Any:
        """A named value, or the constant that stands in its place."""
        if "as_tensor" in item:
            item = item["as_tensor"]
        name = item.get("name", item.get("as_name"))
        if name is not None:
            return self.nodes[name]
        ((kind, what),) = item.items()
        return None if kind == "as_none" else self._plain(kind, what)

    def _plain(self, kind: str, value: Any) -> Any:
        """A constant of the type that its kind says: of containers torch.fx writes the keys into Python source."""
        if kind in ("as_float", "as_floats") and value in NOT_FINITE:
            return NOT_FINITE[value]
        if type(value) not in PLAIN[kind]:
            raise EngineError(f"{self.file}: {value!r} is no constant of kind {kind!r}; export again")
        return value
