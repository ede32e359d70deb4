"""A bfloat16 graph on a machine that computes none: every operator in float32, its results rounded to bfloat16.

ONNX Runtime's CPU has no bfloat16 kernels for MatMul, Conv and most others. TensorRT's kernels add products up in float32
and round what they store, so this is what they compute, but for the order of additions and for fused operators, between
which they do not round at all. Weights stay as they lie in the file, two bytes each, and are widened when they are used.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from onnx_ir.passes import common as passes

from ingot.runtimes.engines.onnx import OnnxEngine
from ingot.runtimes.errors import ExportError
from ingot.runtimes.signature import Signature

# They hand values on as they are: nothing to round.
MOVES = """Concat Expand Flatten Gather GatherElements GatherND Identity Reshape Slice Split Squeeze Tile Transpose Unsqueeze
    Where"""
BFLOAT16, FLOAT = ir.DataType.BFLOAT16, ir.DataType.FLOAT


def open_emulated(file: Path, signature: Signature) -> OnnxEngine:
    """A bfloat16 graph, computed on the CPU by ONNX Runtime. Raises ExportError for what it cannot compute."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    # the optimizer would widen all weights at once; and what it takes for casts to and fro may never be removed
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(file.parent))
    model = ir.to_proto(emulated(ir.load(file))).SerializeToString()
    try:
        session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ORT raises a class of its own for each status code, with no common base
        raise ExportError(f"{file} cannot be checked in bfloat16 on the CPU: {error}") from error
    return OnnxEngine(session, signature)


def emulated(model: ir.Model) -> ir.Model:
    """The same graph in float32, rounded to bfloat16 wherever a result was bfloat16. Changes the model it is given."""
    _complete_types(model)
    _spell_out_casts(model)
    graph = model.graph
    narrow = [node for node in graph if any(value.dtype == BFLOAT16 for value in node.outputs)]
    for value in [value for value in graph.initializers.values() if value.dtype == BFLOAT16]:
        _widen_weight(graph, value)
    for node in narrow:
        _widen_node(graph, node)
    return model


def _complete_types(model: ir.Model) -> None:
    """Operators that a rewrite put in have outputs without a type."""
    passes.ShapeInferencePass()(model)
    untyped = [node.op_type for node in model.graph if any(v.dtype is None for v in node.outputs if v.name)]
    if untyped:
        raise ExportError(f"the types of {', '.join(sorted(set(untyped)))} are not known; bfloat16 cannot be checked")


def _spell_out_casts(model: ir.Model) -> None:
    """CastLike as Cast: what it takes after will be float32."""
    for node in list(model.graph):
        if node.op_type == "CastLike":
            like = node.inputs[1]
            assert like is not None
            assert like.dtype is not None
            cast = ir.node("Cast", [node.inputs[0]], {"to": like.dtype.value})
            cast.outputs[0].type = ir.TensorType(like.dtype)
            _replace(model.graph, node, cast)


def _replace(graph: ir.Graph, old: ir.Node, new: ir.Node) -> None:
    new.outputs[0].name = old.outputs[0].name
    graph.insert_before(old, new)
    old.outputs[0].replace_all_uses_with(new.outputs[0], replace_graph_outputs=True)
    graph.remove(old, safe=True)


def _widen_weight(graph: ir.Graph, weight: ir.Value) -> None:
    """A cast in front of each use: one for all of them would hold every weight in float32 while the graph runs."""
    for node, index in list(weight.uses()):
        wide = _cast(weight, FLOAT)
        graph.insert_before(node, wide)
        node.replace_input_with(index, wide.outputs[0])


def _widen_node(graph: ir.Graph, node: ir.Node) -> None:
    if any(
        attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for attribute in node.attributes.values()
    ):
        raise ExportError(f"{node.op_type} {node.name!r} holds a graph of its own; bfloat16 in it cannot be checked")
    if node.op_type in ("Constant", "ConstantOfShape"):
        _widen_constant(node)
    for value in [value for value in node.outputs if value.dtype == BFLOAT16]:
        if node.op_type == "Cast":
            wide = _cast(value, FLOAT)
            value.replace_all_uses_with(wide.outputs[0])
            wide.replace_input_with(0, value)
            graph.insert_after(node, wide)
            continue
        value.type = ir.TensorType(FLOAT)
        if node.op_type not in MOVES.split():
            rounded = _cast(value, BFLOAT16)
            wide = _cast(rounded.outputs[0], FLOAT)
            value.replace_all_uses_with(wide.outputs[0])
            rounded.replace_input_with(0, value)
            graph.insert_after(node, [rounded, wide])


def _widen_constant(node: ir.Node) -> None:
    tensor = node.attributes["value"].as_tensor()
    node.attributes["value"] = ir.AttrTensor("value", ir.tensor(tensor.numpy().astype(np.float32)))


def _cast(value: ir.Value, dtype: ir.DataType) -> ir.Node:
    node = ir.node("Cast", [value], {"to": dtype.value})
    node.outputs[0].type = ir.TensorType(dtype)
    return node
