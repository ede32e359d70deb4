"""An ONNX graph whose weights are replaced one at a time: what in it can be quantized, and how it is written again.

Weights stay in the source's file until the new file is written: what replaces one is made then and forgotten.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ingot.exporters.graph_file import GraphFile, Progress
from ingot.exporters.onnx_weights import SMALL_BYTES, save, tensor_of
from ingot.runtimes.errors import ExportError, InputError, unknown

from ._onnx_file import beside, load
from .scheme import Layer, Source

MICROSOFT = "com.microsoft"
FORM = "onnxruntime"  # whose a graph with such operators is
TRANSPOSED = ".ingot.transposed"  # what a tied weight is called that the graph also holds transposed
# Past this the weights of a graph lie beside it: a graph with its weights inside is in memory twice while it is written.
INSIDE_BYTES = 256_000_000
# those that quantization writes were run on the CPU alone
CPU_ONLY = {"DynamicQuantizeMatMul", "MatMulIntegerToFloat", "MatMulNBits"}
KINDS = {"MatMul": "linear", "Gemm": "linear", "Conv": "conv", "Gather": "embedding"}


@dataclass(frozen=True)
class Weight:
    """A layer, its weight, and the nodes that use it, which all have one operator."""

    layer: Layer
    value: ir.Value
    nodes: tuple[ir.Node, ...]

    @property
    def operator(self) -> str:
        """MatMul, Gemm, Conv or Gather."""
        return self.nodes[0].op_type

    @property
    def turned(self) -> bool:
        """Whether it is kept as (outputs, inputs)."""
        return self.operator == "Gemm" and integer(self.nodes[0], "transB") == 1

    @property
    def axis(self) -> int:
        """Where its channels lie: the outputs of a layer, the rows of an embedding."""
        return 0 if self.turned or self.layer.kind in ("conv", "embedding") else 1


def weights(model: ir.Model, kinds: Collection[str], *, dtypes: Collection[str] = ("FLOAT",)) -> list[Weight]:
    """The layers of these kinds whose weights lie in the graph, in its order."""
    found: dict[int, tuple[ir.Value, list[ir.Node]]] = {}
    for node in model.graph:
        value = _weight_of(node)
        if value is not None and value.dtype is not None and value.dtype.name in dtypes:
            found.setdefault(id(value), (value, []))[1].append(node)
    fitting = [
        (value, nodes)
        for value, nodes in found.values()
        if KINDS[nodes[0].op_type] in kinds and len(nodes) == len(value.uses()) and _agree(nodes)
    ]
    names = _unique([_name(value) for value, _ in fitting])
    return [
        Weight(Layer(name, KINDS[nodes[0].op_type], tensor_of(value).size), value, tuple(nodes))
        for name, (value, nodes) in zip(names, fitting, strict=True)
    ]


def chosen(found: Sequence[Weight], keep: Collection[str]) -> list[Weight]:
    """Those that are not kept. Raises InputError for a name that none has."""
    names = {weight.layer.name for weight in found}
    for name in keep:
        if name not in names:
            raise unknown("layer to keep", name, names)
    return [weight for weight in found if weight.layer.name not in keep]


def require_float32(source: Source, scheme: str) -> None:
    """Raise InputError for a graph of another precision."""
    if source.dtype != "float32":
        raise InputError(f"{scheme} in ONNX starts from a float32 graph; {source.role} at hand is {source.dtype}")


def read(weight: Weight) -> NDArray[np.float32]:
    """A weight's numbers. Raises ExportError for one with NaN or infinity."""
    tensor = tensor_of(weight.value)
    array = np.array(tensor.numpy(), np.float32)
    if isinstance(tensor, ir.ExternalTensor):
        tensor.release()
    return _finite(weight, "weight", array)


def read_bias(weight: Weight, bias: ir.Value) -> NDArray[np.float32]:
    """The numbers of a layer's bias. Raises ExportError as `read` does."""
    return _finite(weight, "bias", np.array(tensor_of(bias).numpy(), np.float32))


def _finite(weight: Weight, what: str, array: NDArray[np.float32]) -> NDArray[np.float32]:
    if np.isfinite(array).all():
        return array
    strange = "NaN" if np.isnan(array).any() else "an infinity"
    raise ExportError(f"{weight.layer.name}: its {what} holds {strange}, which no integer stands for; keep the layer")


def matrix(weight: Weight) -> NDArray[np.float32]:
    """A linear layer's weight as (inputs, outputs)."""
    array = read(weight)
    return array.T if weight.turned else array


def sizes(weight: Weight) -> tuple[int, int]:
    """A linear layer's inputs and outputs."""
    rows, columns = tensor_of(weight.value).shape
    return (int(columns), int(rows)) if weight.turned else (int(rows), int(columns))


class Edit:
    """A graph while it is changed: new initializers, new nodes in place of old ones."""

    def __init__(self, path: Path) -> None:
        self.model = load(path)
        self.graph, self.beside = self.model.graph, beside(path, self.model)
        self._made: dict[str, ir.Value] = {}
        self._of: dict[str, ir.Value] = {}  # what a lazy one is made of

    def constant(self, name: str, array: NDArray[Any] | np.generic) -> ir.Value:
        """An initializer of this name; the one that was made before by it, which must hold the same."""
        array = np.asarray(array)
        if name not in self._made:
            self._made[name] = self._register(ir.tensor(array, name=name), name)
        held = tensor_of(self._made[name]).numpy()
        if (held.dtype, held.shape, held.tobytes()) != (array.dtype, array.shape, array.tobytes()):
            raise ExportError(f"two different initializers would be called {name!r}; keep one of the layers")
        return self._made[name]

    def lazy(
        self, name: str, weight: Weight, make: Callable[[], NDArray[Any]], dtype: ir.DataType, shape: Sequence[int]
    ) -> ir.Value:
        """An initializer that is made of a weight when it is written; the one that was made before of the same."""
        if self._of.setdefault(name, weight.value) is not weight.value:
            raise ExportError(f"what is made of two weights would be called {name!r}; keep one of the layers")
        if name not in self._made:
            tensor = ir.LazyTensor(
                lambda: ir.tensor(np.ascontiguousarray(make()), dtype=dtype), dtype, ir.Shape(shape), name=name
            )
            self._made[name] = self._register(tensor, name)
        return self._made[name]

    def before(
        self, place: ir.Node, operator: str, inputs: Sequence[ir.Value | None], attributes: dict[str, Any] | None = None,
        *, domain: str = "", outputs: int = 1, like: ir.Value | None = None, name: str = "",
    ) -> Sequence[ir.Value]:  # fmt: skip
        """A new node in front of another; its outputs. `like` gives the first one's type and shape."""
        node = ir.node(operator, inputs, attributes, domain=domain, num_outputs=outputs)
        if like is not None:
            node.outputs[0].type, node.outputs[0].shape = like.type, like.shape
        if name:
            for number, value in enumerate(node.outputs):
                value.name = name if number == 0 else f"{name}_{number}"
        if domain:
            self.model.opset_imports.setdefault(domain, 1)
        self.graph.insert_before(place, node)
        return node.outputs

    def replace(self, old: ir.Node, new: ir.Value) -> None:
        """Use a value in place of a node's only output, under its name, and forget the node."""
        before = old.outputs[0]
        new.type, new.shape = before.type, before.shape
        name = before.name
        before.replace_all_uses_with(new, replace_graph_outputs=True)
        self.graph.remove(old, safe=True)
        new.name = name

    def drop_unused(self) -> None:
        """Drop the weights that nothing uses any more."""
        for name in [name for name, value in self.graph.initializers.items() if not value.uses()]:
            if not self.graph.initializers[name].is_graph_output():
                del self.graph.initializers[name]

    def _register(self, tensor: Any, name: str) -> ir.Value:
        if name in self.graph.initializers:
            raise ExportError(f"the graph has an initializer {name!r} already; is it quantized?")
        value = ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
        self.graph.register_initializer(value)
        return value


def write(
    edit: Edit, source: Source, folder: Path, *, scheme: str, name: str, progress: Progress | None,
    stored: dict[str, Any] | None = None,
) -> GraphFile:  # fmt: skip
    """Write the graph as `name`.onnx, its weights beside it where the source has them there or where they are large."""
    edit.drop_unused()
    model = edit.model
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.onnx"
    _fetch(model, inside=not edit.beside)
    extra = save(model, path, external_bytes=0 if edit.beside else INSIDE_BYTES, progress=progress)
    devices = _devices(model, source)
    kept = dict(source.stored if stored is None else stored)
    return GraphFile(
        role=source.role, path=path, extra_files=extra, dtype=scheme, static=source.static, signature=source.signature,
        node_count=len(model.graph), stored=kept | ({"devices": devices} if devices else {}), form=FORM if devices else "",
    )  # fmt: skip


def _fetch(model: ir.Model, *, inside: bool) -> None:
    """Read what is to be stored in the graph itself from the source's file: all of a small graph, shapes and scalars."""
    stored = list(model.graph.initializers.values())
    total = sum(tensor_of(value).nbytes for value in stored)
    for value in stored:
        tensor = tensor_of(value)
        small = tensor.nbytes < SMALL_BYTES or (inside and total <= INSIDE_BYTES)
        if small and isinstance(tensor, ir.ExternalTensor):
            value.const_value = ir.tensor(np.array(tensor.numpy()), dtype=tensor.dtype, name=value.name)
            value.const_value.metadata_props.update(tensor.metadata_props)
            tensor.release()


def _devices(model: ir.Model, source: Source) -> list[str]:
    """Where a graph with operators of ONNX Runtime's own is at home; none is named for a portable one."""
    used = {node.op_type for node in model.graph if node.domain == MICROSOFT}
    if not used:
        return []
    return ["cpu"] if used & CPU_ONLY else list(source.stored.get("devices", ["cpu"]))


def integer(node: ir.Node, name: str, default: int = 0) -> int:
    """An integer attribute."""
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_int()


def bias_of(node: ir.Node) -> ir.Value | None:
    """A Gemm's or Conv's bias."""
    return node.inputs[2] if len(node.inputs) > 2 else None


def added_bias(node: ir.Node) -> tuple[ir.Node, ir.Value] | None:
    """The addition of a bias that follows a MatMul, and the bias; None where something else does."""
    output = node.outputs[0]
    uses = list(output.uses())
    if len(uses) != 1 or output.is_graph_output():
        return None
    user, index = uses[0]
    other = user.inputs[1 - index] if user.op_type == "Add" and user.domain == "" else None
    if other is None or other.const_value is None or other.shape is None or len(other.shape) != 1:
        return None
    shape = node.inputs[1].shape if node.inputs[1] is not None else None
    return (user, other) if shape is not None and other.shape[0] == shape[-1] else None


def _weight_of(node: ir.Node) -> ir.Value | None:
    """The initializer that is this node's weight."""
    if node.domain not in ("", "ai.onnx") or node.op_type not in KINDS:
        return None
    if node.op_type != "Gather" and (node.inputs[0] is None or node.inputs[0].is_initializer()):
        return None  # it reads a constant, which no run shows
    value = node.inputs[0 if node.op_type == "Gather" else 1]
    if value is None or value.const_value is None or value.name not in (node.graph.initializers if node.graph else ()):
        return None
    rank = len(tensor_of(value).shape)
    if node.op_type == "Conv":
        return value if rank >= 3 else None
    plain = {"MatMul": _plain_matmul, "Gemm": _plain_gemm, "Gather": _plain_gather}[node.op_type]
    return value if rank == 2 and plain(node) else None


def _plain_matmul(node: ir.Node) -> bool:
    return node.inputs[0] is not None


def _plain_gemm(node: ir.Node) -> bool:
    factors = [node.attributes.get(name) for name in ("alpha", "beta")]
    bias = bias_of(node)
    flat = bias is None or (bias.shape is not None and len(bias.shape) == 1)
    return integer(node, "transA") == 0 and flat and all(f is None or f.as_float() == 1 for f in factors)


def _plain_gather(node: ir.Node) -> bool:
    return integer(node, "axis") == 0


def _agree(nodes: Sequence[ir.Node]) -> bool:
    return len({(node.op_type, integer(node, "transB")) for node in nodes}) == 1


def _name(value: ir.Value) -> str:
    assert value.name is not None
    tied = value.name.endswith(TRANSPOSED)
    name = value.name.removesuffix(TRANSPOSED).removesuffix(".weight")
    return f"{name}.transposed" if tied else name


def _unique(names: Sequence[str]) -> list[str]:
    return [name if names.index(name) == at else f"{name}#{at}" for at, name in enumerate(names)]


def in_order(model: ir.Model, found: Sequence[Weight]) -> Iterator[tuple[ir.Node, Weight]]:
    """The nodes that use the weights, in the graph's order."""
    by_node = {id(node): weight for weight in found for node in weight.nodes}
    return ((node, by_node[id(node)]) for node in list(model.graph) if id(node) in by_node)
