"""int8 with recorded ranges for ONNX Runtime: QDQ, of which it makes QLinearConv and MatMulIntegerToFloat.

A convolution becomes an integer one only where what it gives is rounded too (`outputs`); without, ConvInteger adds up
what is rounded by a recorded range and answers floats, which is nearer, and slower: it wants uint8 weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ingot.exporters.graph_file import Progress
from ingot.exporters.onnx_weights import tensor_of

from . import _onnx_integers as integers
from ._onnx_calibration import Calls, observe
from ._onnx_dynamic import convolve, linear_weight
from ._onnx_graph import Edit, Weight, bias_of, in_order, read, read_bias
from ._onnx_qdq import (
    Rounding,
    Scale,
    activations,
    round_activation,
    round_bias,
    round_output,
    scale_for,
    scales_with_bias,
)
from .scheme import Source

FLOAT = ir.DataType.FLOAT


def make_static(
    edit: Edit,
    source: Source,
    found: Sequence[Weight],
    everything: Sequence[Weight],
    calls: Calls,
    *,
    form: str,
    rounding: Rounding,
    outputs: bool,
    progress: Progress | None = None,
) -> None:
    """Linear layers and convolutions between QuantizeLinear and DequantizeLinear: activations uint8, weights int8. `found`
    are those of `everything` that are not kept."""
    # all layers are watched, those that are kept too: the next call, with others kept, finds the answers here
    observed = observe(source.path, activations(everything, outputs=outputs), calls, progress=progress) if found else {}
    scales = {name: rounding.scale(name, observed[name]) for name in activations(found, outputs=outputs)}
    rounded: dict[int, Any] = {}
    for node, weight in list(in_order(edit.model, found)):
        if weight.layer.kind == "linear":
            _linear(edit, node, weight, form, _activation(edit, node, scales, rounded))
        elif outputs:
            given = scale_for(node.inputs[0], scales)
            answer = scale_for(node.outputs[0], scales)
            _convolution(edit, node, weight, form, _activation(edit, node, scales, rounded), given, answer)
        else:
            convolve(edit, node, weight, _integers(edit, node, scales, rounded))


def _activation(edit: Edit, node: ir.Node, scales: Mapping[str, Scale], rounded: dict[int, Any]) -> ir.Value:
    """What a node reads, rounded once for all of its readers."""
    value = node.inputs[0]
    assert value is not None
    if id(value) not in rounded:
        rounded[id(value)] = round_activation(edit, node, value, scale_for(value, scales), FLOAT)
    wide: ir.Value = rounded[id(value)]
    return wide


def _integers(
    edit: Edit, node: ir.Node, scales: Mapping[str, Scale], rounded: dict[int, Any]
) -> tuple[ir.Value, ir.Value, ir.Value]:
    """The same before it is floats again: integers, scale and zero point."""
    up = _activation(edit, node, scales, rounded).producer()
    assert up is not None
    small, step, zero = up.inputs
    assert small is not None
    assert step is not None
    assert zero is not None
    return small, step, zero


def _linear(edit: Edit, node: ir.Node, weight: Weight, form: str, activation: ir.Value) -> None:
    small, scale, _ = linear_weight(edit, weight, form)
    zero = edit.constant(f"{weight.layer.name}.weight_zeros", _zeros(form, np.size(tensor_of(scale).numpy())))
    (wide,) = edit.before(node, "DequantizeLinear", [small, scale, zero], {"axis": 1})
    (output,) = edit.before(node, "MatMul", [activation, wide], like=node.outputs[0])
    bias = bias_of(node) if weight.operator == "Gemm" else None
    if bias is not None:
        (output,) = edit.before(node, "Add", [output, bias])
    edit.replace(node, output)


def _convolution(
    edit: Edit, node: ir.Node, weight: Weight, form: str, activation: ir.Value, given: Scale, answer: Scale
) -> None:
    array, name, bits = read(weight), _name_for(node, weight), 7 if form == "int7" else 8
    bias = bias_of(node)
    known = bias is not None and bias.const_value is not None
    added = read_bias(weight, bias) if bias is not None and known else None
    scale = scales_with_bias(array, 0, bits, added, given[0])

    def make() -> NDArray[Any]:
        found = integers.rounded(read(weight), scale, 0, bits)
        return integers.biased(found) if form == "uint8" else found

    dtype = ir.DataType.UINT8 if form == "uint8" else ir.DataType.INT8
    small = edit.lazy(f"{name}.weight_quantized", weight, make, dtype, array.shape)
    zero = edit.constant(f"{name}.weight_zeros", _zeros(form, len(scale)))
    steps = edit.constant(f"{name}.weight_scale", scale)
    (wide,) = edit.before(node, "DequantizeLinear", [small, steps, zero], {"axis": 0})
    node.replace_input_with(0, activation)
    node.replace_input_with(1, wide)
    if added is not None:
        node.replace_input_with(2, round_bias(edit, node, name, added, (scale * given[0]).astype(np.float32)))
    round_output(edit, node, answer, FLOAT)


def _name_for(node: ir.Node, weight: Weight) -> str:
    """A name for what is made of a weight for one of its nodes: the activation's scale is in it."""
    at = next(number for number, other in enumerate(weight.nodes) if other is node)
    # not "#", which tells layers of one name apart
    return f"{weight.layer.name}@{at}" if at else weight.layer.name


def _zeros(form: str, count: int) -> NDArray[Any]:
    return np.full(count, 128, np.uint8) if form == "uint8" else np.zeros(count, np.int8)
