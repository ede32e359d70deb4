"""An exported program as an ONNX graph with the model's own weight names and the signature's dimensions."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import onnx_ir as ir
import torch
from onnx_ir.passes import Sequential
from onnx_ir.passes import common as passes
from onnxscript.optimizer import fold_constants
from onnxscript.rewriter import _DEFAULT_REWRITE_RULES, rewrite
from onnxscript.rewriter.rules.common import slice_split_rule
from torch.export import ExportedProgram
from torch.onnx.errors import OnnxExporterError

from ingot.runtimes.signature import Signature

from .axes import in_terms_of
from .onnx_lower import lowered
from .trace import uncached

# What FlatModule puts before the names of the module that it wraps.
PREFIX = "source."
# On a tensor that the graph holds as the model's weight with rows and columns exchanged.
TRANSPOSED = "ingot.transposed"
TRACED = "ingot.traced_nodes"  # of a model: how many nodes it had before it was simplified


def build(
    program: ExportedProgram, signature: Signature, opset: int, *, static: bool = False
) -> tuple[ir.Model, tuple[str, ...]]:
    """The program as an ONNX model, and the initializers that are the module's parameters, by their names there.

    Tensors stay where torch has them: nothing is copied before the model is saved.
    """
    with _silent(), torch.no_grad(), uncached():
        model = _translated(program, signature, opset)
        weights = [value for name, value in model.graph.initializers.items() if name in program.state_dict]
        passes.InlinePass()(model)
        traced = len(model.graph)
        _transpose_weights(model, weights)
        with _unknown(weights):
            _simplify(model)
    names = _name_weights(model, weights)
    _declare(model, signature, static=static)
    model.metadata_props[TRACED] = str(traced)
    return model, names


def is_transposed(value: ir.Value) -> bool:
    """Whether an initializer is a model's weight with rows and columns exchanged."""
    return value.const_value is not None and value.const_value.metadata_props.get(TRANSPOSED) == "1"


def _translated(program: ExportedProgram, signature: Signature, opset: int) -> ir.Model:
    quick = lowered(program)
    try:
        return _exported(quick, signature, opset)
    except OnnxExporterError:
        if quick.was_decomposed:
            raise
        return _exported(program, signature, opset)


def _exported(program: ExportedProgram, signature: Signature, opset: int) -> ir.Model:
    exported = torch.onnx.export(
        program,
        dynamo=True,
        optimize=False,
        verbose=False,
        opset_version=opset,
        input_names=[spec.name for spec in signature.inputs],
        output_names=[spec.name for spec in signature.outputs],
    )
    assert exported is not None
    model: ir.Model = exported.model
    return model


@contextmanager
def _silent() -> Iterator[None]:
    """Without two loggers' warnings: no torchvision operators, and weights without a value, which is our doing."""
    names = ("torch.onnx._internal.exporter._registration", "onnx_ir.passes.common.initializer_deduplication")
    loggers = [(logging.getLogger(name), logging.getLogger(name).level) for name in names]
    for logger, _ in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in loggers:
            logger.setLevel(level)


@contextmanager
def _unknown(weights: Sequence[ir.Value]) -> Iterator[None]:
    """Hide the weights' values from the optimizer.

    Knowing them it folds transposed and reshaped ones into `val_N` (100 of 254 in a small UNet), merges every norm
    whose weights are all ones with the next, and copies what it folds.
    """
    values = [weight.const_value for weight in weights]
    for weight in weights:
        weight.const_value = None
    try:
        yield
    finally:
        for weight, value in zip(weights, values, strict=True):
            weight.const_value = value


def _simplify(model: ir.Model) -> None:
    """onnxscript's optimizer in its own order, on a graph whose weights are hidden from it.

    Without its rule of two outputs, two slices into a split: it is tried on every node by a walk over all others, two thirds
    of the whole optimization of a UNet, and torch writes splits as splits.
    """
    rules = [rule for rule in _DEFAULT_REWRITE_RULES if rule is not slice_split_rule]
    for _ in range(2):
        fold_constants(model, onnx_shape_inference=True)
        rewrite(model, rules)
    Sequential(
        passes.RemoveUnusedNodesPass(),
        passes.RemoveUnusedFunctionsPass(),  # type: ignore[no-untyped-call]  # onnx_ir leaves its __init__ untyped
        passes.RemoveUnusedOpsetsPass(),
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        passes.DeduplicateInitializersPass(),
        passes.CommonSubexpressionEliminationPass(),
        passes.OutputFixPass(),
        passes.NameFixPass(),
    )(model)


def _transpose_weights(model: ir.Model, weights: list[ir.Value]) -> None:
    """Replace `Transpose(weight)` by the transposed weight, made when it is written and forgotten then."""
    for weight in list(weights):
        nodes = [node for node in weight.consumers() if node.op_type == "Transpose" and len(weight.shape or ()) == 2]
        if not nodes:
            continue
        flipped = _flipped(weight)
        for node in nodes:
            node.outputs[0].replace_all_uses_with(flipped)
            model.graph.remove(node, safe=True)
        if weight.consumers():  # A tied weight, also used as it stands: it keeps the name, this one gets another.
            flipped.name = f"{weight.name}.{TRANSPOSED}"
        else:
            assert weight.name is not None
            del model.graph.initializers[weight.name]
            weights.remove(weight)
        model.graph.register_initializer(flipped)
        weights.append(flipped)


def _flipped(weight: ir.Value) -> ir.Value:
    tensor, shape = weight.const_value, weight.shape
    assert tensor is not None
    assert shape is not None
    turned = ir.Shape(tuple(shape)[::-1])
    lazy = ir.LazyTensor(
        lambda: ir.tensor(torch.as_tensor(tensor.raw).detach().t().contiguous()),
        dtype=tensor.dtype,
        shape=turned,
        name=weight.name,
        metadata_props={TRANSPOSED: "1"},
    )
    return ir.Value(name=weight.name, shape=turned, type=weight.type, const_value=lazy)


def _name_weights(model: ir.Model, weights: list[ir.Value]) -> tuple[str, ...]:
    """Give the weights that the graph uses their names in the model, and return these."""
    passes.RemoveUnusedNodesPass()(model)
    used = [weight for weight in weights if weight.name in model.graph.initializers]
    for weight in used:
        assert weight.name is not None
        assert weight.const_value is not None
        weight.name = weight.name.removeprefix(PREFIX)
        weight.const_value.name = weight.name
    return tuple(weight.name for weight in used if weight.name)


def _declare(model: ir.Model, signature: Signature, *, static: bool) -> None:
    """Give inputs and outputs the signature's dimensions; drop the tracer's symbols (`s23`) and notes everywhere.

    The notes hold, for each node, the Python stack that it came from: two thirds of a graph's size, and this machine's
    paths.
    """
    graph = model.graph
    for thing in (model, graph, *graph, *graph.inputs, *(value for node in graph for value in node.outputs)):
        thing.metadata_props.clear()
    if not static:
        for value in (value for node in graph for value in node.outputs if not value.is_graph_output()):
            value.shape = None
    known = {dim for spec in signature.inputs for dim in spec.shape if isinstance(dim, str)}
    for value, spec in zip(graph.inputs, signature.inputs, strict=True):
        value.shape = ir.Shape(spec.shape)
    for value, spec in zip(graph.outputs, signature.outputs, strict=True):
        value.shape = ir.Shape([in_terms_of(dim, known) if isinstance(dim, str) else dim for dim in spec.shape])
