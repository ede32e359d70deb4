"""Integer arithmetic on activations that are rounded as they come: A B with A = s_a (q_a - z_a), B = s_b (q_b - z_b) is
s_a s_b sum((q_a - z_a)(q_b - z_b)), the sum in integers.

`com.microsoft` has it whole, float to float: DynamicQuantizeMatMul rounds its own input, MatMulIntegerToFloat takes one
that is rounded already. Which is used depends on how many layers read the activation (three, for queries, keys and
values): it is rounded once.

Which integers, as tried on a CPU with AVX2 alone, ONNX Runtime 1.31.1, one thread: products of uint8 activations with
int8 weights are added in pairs in 16 bits, which saturates from 255 * 127 * 2 on: the worst sum came out a half of what
it should be. With weights of 7 bits no pair saturates. uint8 weights with their zero at 128 are exact too, and took 1.3
times as long (256x320x320 to 1024x1280x320); int8 activations with int8 weights took 5 times as long. CPUs with VNNI add
in 32 bits. In convolutions ConvInteger has its fast path for uint8 weights only: int8 ones took 4 times as long.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from . import _onnx_integers as integers
from ._onnx_graph import MICROSOFT, Edit, Weight, added_bias, bias_of, in_order, matrix, read, sizes

UINT8, INT8, FLOAT = ir.DataType.UINT8, ir.DataType.INT8, ir.DataType.FLOAT


def make_dynamic(edit: Edit, found: Sequence[Weight], *, form: str) -> None:
    """Linear layers and convolutions in integers.

    `form` is what linear weights are kept as: "int7", int8 of which 7 bits are used, "uint8" or "int8". Convolutions
    always have uint8.
    """
    rounded: dict[int, Sequence[ir.Value]] = {}
    shared = _shared(edit.model, found)
    for node, weight in in_order(edit.model, found):
        if weight.layer.kind == "conv":
            convolve(edit, node, weight, _round_activation(edit, node, rounded))
        else:
            given = node.inputs[0]
            read_often = id(given) in shared
            _linear(edit, node, weight, form, _round_activation(edit, node, rounded) if read_often else None)


def linear_weight(edit: Edit, weight: Weight, form: str) -> tuple[ir.Value, ir.Value, ir.Value]:
    """A linear layer's integers (inputs, outputs), scales (outputs,) and zero point."""
    bits = 7 if form == "int7" else 8
    array = matrix(weight)
    scale = integers.scales(array, 1, bits)

    def make() -> NDArray[Any]:
        found = integers.rounded(matrix(weight), scale, 1, bits)
        return integers.biased(found) if form == "uint8" else found

    name, unsigned = weight.layer.name, form == "uint8"
    return (
        edit.lazy(f"{name}.weight_quantized", weight, make, UINT8 if unsigned else INT8, sizes(weight)),
        edit.constant(f"{name}.weight_scale", scale),
        edit.constant(f"{name}.weight_zero", np.uint8(128) if unsigned else np.int8(0)),
    )


def _shared(model: ir.Model, found: Sequence[Weight]) -> set[int]:
    """Activations that several of these layers read, or that a convolution does: to be rounded once, in the open."""
    readers: dict[int, int] = {}
    for node, weight in in_order(model, found):
        key = id(node.inputs[0])
        readers[key] = readers.get(key, 0) + (2 if weight.layer.kind == "conv" else 1)
    return {key for key, count in readers.items() if count > 1}


def _round_activation(edit: Edit, node: ir.Node, rounded: dict[int, Sequence[ir.Value]]) -> Sequence[ir.Value]:
    given = node.inputs[0]
    assert given is not None
    if id(given) not in rounded:
        # in front of its first reader, as nodes are taken in the graph's order
        rounded[id(given)] = edit.before(
            node, "DynamicQuantizeLinear", [given], outputs=3, name=f"{given.name}_quantized"
        )
    return rounded[id(given)]


def _linear(edit: Edit, node: ir.Node, weight: Weight, form: str, rounded: Sequence[ir.Value] | None) -> None:
    weights, scale, zero = linear_weight(edit, weight, form)
    bias, last = bias_of(node) if weight.operator == "Gemm" else None, node
    addition = added_bias(node) if weight.operator == "MatMul" else None
    if addition:
        last, bias = addition
    if rounded is None:
        inputs: list[ir.Value | None] = [node.inputs[0], weights, scale, zero, bias]
        operator = "DynamicQuantizeMatMul"
    else:
        inputs = [rounded[0], weights, rounded[1], scale, rounded[2], zero, bias]
        operator = "MatMulIntegerToFloat"
    # the bias may be made after the product: the new node stands where the last of both stood
    (output,) = edit.before(last, operator, inputs, domain=MICROSOFT, like=last.outputs[0])
    edit.replace(last, output)
    if last is not node:
        edit.graph.remove(node, safe=True)


def convolve(edit: Edit, node: ir.Node, weight: Weight, rounded: Sequence[ir.Value]) -> None:
    """A convolution of a rounded activation: its integers, scale and zero point."""
    array, name = read(weight), weight.layer.name
    scale = integers.scales(array, 0, 8)

    def make() -> NDArray[Any]:
        return integers.biased(integers.rounded(read(weight), scale, 0, 8))

    weights = edit.lazy(f"{name}.weight_quantized", weight, make, UINT8, array.shape)
    zero = edit.constant(f"{name}.weight_zero", np.uint8(128))
    along = (-1, *([1] * (array.ndim - 2)))
    scales = edit.constant(f"{name}.weight_scale", scale.reshape(along))
    attributes = dict(node.attributes.items())
    (sums,) = edit.before(node, "ConvInteger", [rounded[0], weights, rounded[2], zero])
    sums_node = sums.producer()
    assert sums_node is not None
    sums_node.attributes.update(attributes)
    (wide,) = edit.before(node, "Cast", [sums], {"to": FLOAT.value})
    (factor,) = edit.before(node, "Mul", [rounded[1], scales])
    (output,) = edit.before(node, "Mul", [wide, factor])
    bias = bias_of(node)
    if bias is not None:
        (shaped,) = edit.before(
            node, "Reshape", [bias, edit.constant(f"ingot.shape_{array.ndim}", np.array(along, np.int64))]
        )
        (output,) = edit.before(node, "Add", [output, shaped])
    edit.replace(node, output)
