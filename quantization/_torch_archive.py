"""A `.pt2` program as its JSON, changed and written anew: what is kept is copied from the old archive a member at a time.

What is new is held in memory until `Program.save`, all of it: about a quarter of the weights' float32 with int8, half with fp16.
torch.export.load would unpickle, and trace or rebuild every shape; what is not touched here stays as it was, to the bit.
"""

from __future__ import annotations

import copy
import json
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export.pt2_archive._package import PT2ArchiveWriter

from ingot.runtimes.engines._torch_archive import DTYPES, Archive
from ingot.runtimes.errors import ExportError

Dim = dict[str, Any]
"""A size as the file has it: a number, or an expression of sizes."""
NUMBERS = {dtype: number for number, dtype in DTYPES.items()}
CONFIG = "data/weights/model_weights_config.json"
MODEL = "models/model.json"
HELD = ("parameter", "buffer", "tensor_constant")


class Program:
    """The graph of an archive, open for changes."""

    def __init__(self, file: Path) -> None:
        self.archive = Archive(file)
        self.tensors = self.archive.tensors()
        self._json = self.archive.json(MODEL)
        module = self._json["graph_module"]
        self.graph, self.specs = module["graph"], module["signature"]["input_specs"]
        self.config = self.archive.json(CONFIG)
        self.values: dict[str, Any] = self.graph["tensor_values"]
        self._made: dict[str, Tensor] = {}

    @property
    def nodes(self) -> list[Any]:
        """The calls in order."""
        nodes: list[Any] = self.graph["nodes"]
        return nodes

    @nodes.setter
    def nodes(self, nodes: list[Any]) -> None:
        self.graph["nodes"] = nodes

    def parameters(self) -> dict[str, str]:
        """The names of weights in the archive by their names in the graph."""
        held = [(kind, what) for spec in self.specs for kind, what in spec.items() if kind in HELD]
        return {what["arg"]["name"]: what[f"{kind}_name"] for kind, what in held}

    def drop(self, value: str) -> None:
        """Take a parameter out; its bytes are not written."""
        name = self.parameters()[value]
        self.specs[:] = [spec for spec in self.specs if _named(spec) != value]
        self.graph["inputs"] = [one for one in self.graph["inputs"] if one.get("as_tensor", {}).get("name") != value]
        del self.config["config"][name], self.values[value]

    def add(self, name: str, tensor: Tensor) -> str:
        """Hold a tensor as a buffer of this name; the graph's name for it."""
        value = f"b_{name.replace('.', '_')}"
        meta = described(tensor.dtype, tensor.shape)
        place = next(n for n, spec in enumerate([*self.specs, {"user_input": None}]) if "user_input" in spec)
        arg = {"name": value}
        self.specs.insert(place, {"buffer": {"arg": arg, "buffer_name": name, "persistent": True}})
        self.graph["inputs"].insert(place, {"as_tensor": dict(arg)})
        self.values[value] = meta
        taken = {entry["path_name"] for entry in self.config["config"].values()}
        number = next(n for n in range(len(taken) + len(self._made) + 1) if f"weight_{n}" not in taken)
        self.config["config"][name] = {
            "path_name": f"weight_{number}", "is_param": False, "use_pickle": False, "tensor_meta": meta,
        }  # fmt: skip
        self._made[f"weight_{number}"] = tensor
        return value

    def save(self, file: Path) -> None:
        """Write the archive, at once or not at all. Raises ExportError for a disk that will not have it."""
        members = {f"data/weights/{entry['path_name']}" for entry in self.config["config"].values()}
        kept = [
            name for name in self.archive.members() if name in members or not name.startswith("data/weights/weight_")
        ]
        new = {CONFIG: json.dumps(self.config).encode(), MODEL: json.dumps(self._json).encode()}
        try:
            with tempfile.TemporaryDirectory(dir=file.parent) as scratch:
                whole = Path(scratch, "model.pt2")  # the archive's members begin with its stem
                with PT2ArchiveWriter(str(whole)) as writer:
                    for name in kept:
                        if name.removeprefix("data/weights/") not in self._made and not name.startswith(".data/"):
                            writer.write_bytes(name, new.get(name) or bytes(self.archive.content(name)))
                    for path, made in self._made.items():
                        writer.write_bytes(f"data/weights/{path}", _content(made))
                whole.replace(file)
        except (OSError, RuntimeError) as error:
            raise ExportError(f"{file} cannot be written: {error}") from error


class Calls:
    """New calls, which go where the caller puts them."""

    def __init__(self, program: Program, prefix: str) -> None:
        self.made: list[Any] = []
        self._program, self._prefix = program, prefix

    def call(self, operator: str, *inputs: Any, dtype: torch.dtype, sizes: Sequence[Dim], name: str = "") -> str:
        """Call an ATen operator ("mul.Tensor"); its result's name. Inputs are arguments as `tensor` and others make them."""
        name = name or f"{self._prefix}_{len(self.made)}"
        overload = getattr(getattr(torch.ops.aten, operator.split(".")[0]), operator.split(".")[1])
        names = [argument.name for argument in overload._schema.arguments]
        self._program.values[name] = described(dtype, sizes)
        self._node(operator, names, inputs, {"as_tensor": {"name": name}}, name)
        return name

    def size(self, value: str, axis: int) -> Dim:
        """A size of a value as an argument: a number, or a call that asks for it."""
        dim: Dim = self._program.values[value]["sizes"][axis]
        if "as_int" in dim:
            return dim
        name = f"{self._prefix}_{len(self.made)}"
        self._program.graph["sym_int_values"][name] = copy.deepcopy(dim)
        arguments = (tensor(value), {"as_int": axis})
        self._node("sym_size.int", ["self", "dim"], arguments, {"as_sym_int": {"as_name": name}}, name)
        return {"as_name": name}

    def _node(self, operator: str, names: Sequence[str], inputs: Sequence[Any], output: Any, name: str) -> None:
        given = [{"name": n, "arg": arg, "kind": 1} for n, arg in zip(names, inputs, strict=False)]
        self.made.append(
            {"target": f"torch.ops.aten.{operator}", "inputs": given, "outputs": [output], "metadata": {},
             "is_hop_single_tensor_return": None, "name": name}
        )  # fmt: skip


def tensor(value: str) -> Any:
    """A value as an argument."""
    return {"as_tensor": {"name": value}}


def fixed(shape: Sequence[int]) -> list[Dim]:
    """A shape as sizes."""
    return [{"as_int": size} for size in shape]


def times(dims: Sequence[Dim]) -> Dim:
    """The product of sizes."""
    numbers = math.prod(dim["as_int"] for dim in dims if "as_int" in dim)
    open_ones = [dim["as_expr"] for dim in dims if "as_int" not in dim]
    if not open_ones:
        return {"as_int": numbers}
    factors = [f"Integer({numbers})"] * (numbers != 1) + [one["expr_str"] for one in open_ones]
    hint = numbers * math.prod(one["hint"]["as_int"] for one in open_ones)
    text = factors[0] if len(factors) == 1 else f"Mul({', '.join(factors)})"
    return {"as_expr": {"expr_str": text, "hint": {"as_int": hint}}}


def described(dtype: torch.dtype, sizes: Sequence[Any]) -> dict[str, Any]:
    """What the file says of a contiguous tensor of these sizes."""
    dims = [{"as_int": size} if isinstance(size, int) else copy.deepcopy(size) for size in sizes]
    return {
        "dtype": NUMBERS[dtype], "sizes": dims, "requires_grad": False, "device": {"type": "cpu", "index": None},
        "strides": [times(dims[axis + 1 :]) for axis in range(len(dims))], "storage_offset": {"as_int": 0}, "layout": 7,
    }  # fmt: skip


def _content(made: Tensor) -> bytes:
    return made.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _named(spec: Any) -> str:
    ((_, what),) = spec.items()
    return str(what["arg"]["name"]) if "name" in what["arg"] else ""
