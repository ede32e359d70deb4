"""Small ONNX graphs with the model's weight names, for the tests of quantization."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from ingot.exporters.onnx_weights import save
from ingot.quantization.scheme import Source
from ingot.runtimes.signature import Signature, TensorSpec

Array = NDArray[Any]
TYPES = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "int64": TensorProto.INT64}


def source(
    folder: Path, nodes: Sequence[onnx.NodeProto], inputs: Mapping[str, tuple[str, Sequence[Any]]],
    outputs: Mapping[str, Sequence[Any]], weights: Mapping[str, Array], *, opset: int = 20, dtype: str = "float32",
    beside: bool = False,
) -> Source:  # fmt: skip
    """A graph of these nodes and weights in a folder, as a bundle would hand it over."""
    graph = helper.make_graph(
        list(nodes), "graph",
        [helper.make_tensor_value_info(name, TYPES[kind], shape) for name, (kind, shape) in inputs.items()],
        [helper.make_tensor_value_info(name, TYPES[dtype], shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "model.onnx"
    save(ir.from_proto(model), path, external_bytes=0 if beside else 10**9)
    signature = Signature(
        tuple(TensorSpec(name, kind, tuple(shape)) for name, (kind, shape) in inputs.items()),
        tuple(TensorSpec(name, dtype, tuple(shape)) for name, shape in outputs.items()),
    )
    return Source("unet", path, signature, {}, dtype, False, {})


def linear(folder: Path, weight: Array, bias: Array | None = None, **given: Any) -> Source:
    """x (rows, inputs) times a weight (inputs, outputs), with a bias added."""
    kind = given.get("dtype", "float32")
    nodes = [helper.make_node("MatMul", ["x", "layer.weight"], ["y" if bias is None else "product"])]
    weights = {"layer.weight": weight}
    if bias is not None:
        nodes.append(helper.make_node("Add", ["product", "layer.bias"], ["y"]))
        weights["layer.bias"] = bias
    inputs, outputs = weight.shape
    return source(folder, nodes, {"x": (kind, ("rows", inputs))}, {"y": ("rows", outputs)}, weights, **given)


def gemm(folder: Path, weight: Array, bias: Array) -> Source:
    """The same as torch keeps it: a weight (outputs, inputs)."""
    node = helper.make_node("Gemm", ["x", "layer.weight", "layer.bias"], ["y"], transB=1)
    outputs, inputs = weight.shape
    return source(
        folder, [node], {"x": ("float32", ("rows", inputs))}, {"y": ("rows", outputs)},
        {"layer.weight": weight, "layer.bias": bias},
    )  # fmt: skip


def convolution(
    folder: Path, weight: Array, bias: Array | None = None, *, group: int = 1, padding: int = 0, **given: Any
) -> Source:
    """x (batch, channels, height, width) convolved."""
    kind = given.get("dtype", "float32")
    names = ["x", "layer.weight", *(["layer.bias"] if bias is not None else [])]
    node = helper.make_node("Conv", names, ["y"], group=group, pads=[padding] * 4, kernel_shape=weight.shape[2:])
    weights = {"layer.weight": weight} | ({"layer.bias": bias} if bias is not None else {})
    shapes = ("batch", weight.shape[1] * group, "height", "width"), ("batch", weight.shape[0], "height", "width")
    return source(folder, [node], {"x": (kind, shapes[0])}, {"y": shapes[1]}, weights, **given)


def embedding(folder: Path, weight: Array) -> Source:
    """Rows of a table."""
    node = helper.make_node("Gather", ["layer.weight", "ids"], ["y"], axis=0)
    return source(
        folder, [node], {"ids": ("int64", ("count",))}, {"y": ("count", weight.shape[1])}, {"layer.weight": weight}
    )


def stored(path: Path) -> dict[str, Array]:
    """The initializers of a graph."""
    return {
        name: value.const_value.numpy() for name, value in ir.load(path).graph.initializers.items() if value.const_value
    }


def operators(path: Path) -> list[str]:
    """The operators of a graph, in order."""
    return [node.op_type for node in ir.load(path).graph]


def rng() -> np.random.Generator:
    """The same numbers each time."""
    return np.random.default_rng(11)
