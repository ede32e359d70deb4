"""Weights stored small and computed with as floats.

Unpacked "on load", a weight is Cast and Mul of constants, which ONNX Runtime folds when it opens the graph: the file is
small, memory and speed are the float graph's. Unpacked "on run", it stays small in memory: convolutions by
DequantizeLinear (1.1 times as long at 320 channels, 32x32; ONNX Runtime 1.31.1, AVX2), linear layers by com.microsoft's
MatMulNBits, whose kernel unpacks a tile at a time (1.1 times as long at 1024x320x2560 with 8 bits, as long as in floats
with 4), where DequantizeLinear took 1.8 times as long.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ingot.exporters.onnx_weights import tensor_of
from ingot.runtimes.errors import ExportError

from . import _onnx_integers as integers
from ._onnx_graph import MICROSOFT, Edit, Weight, added_bias, bias_of, in_order, matrix, read, sizes

UINT8, INT8, FLOAT, FLOAT16 = ir.DataType.UINT8, ir.DataType.INT8, ir.DataType.FLOAT, ir.DataType.FLOAT16
HALF_MAX = float(np.finfo(np.float16).max)


def on_load(edit: Edit, found: Sequence[Weight]) -> None:
    """8 bits to a channel, floats again when the graph is opened."""
    for weight in found:
        small, scale = _channels(edit, weight)
        along = [1] * len(small.shape or ())
        along[weight.axis] = -1
        shaped = edit.constant(f"{weight.layer.name}.weight_scale", np.asarray(scale).reshape(along))
        (wide,) = edit.before(_first(edit, weight), "Cast", [small], {"to": FLOAT.value})
        (unpacked,) = edit.before(_first(edit, weight), "Mul", [wide, shaped], like=weight.value)
        weight.value.replace_all_uses_with(unpacked)


def on_run(edit: Edit, found: Sequence[Weight]) -> None:
    """8 bits to a channel of a convolution, floats again at every run."""
    for weight in found:
        small, scale = _channels(edit, weight)
        scales = edit.constant(f"{weight.layer.name}.weight_scale", scale)
        (unpacked,) = edit.before(
            _first(edit, weight), "DequantizeLinear", [small, scales], {"axis": weight.axis}, like=weight.value
        )
        weight.value.replace_all_uses_with(unpacked)


def rows(edit: Edit, found: Sequence[Weight]) -> None:
    """Embeddings: 8 bits to a row, the rows that are looked up made floats. 4 small operators that every engine has."""
    for node, weight in in_order(edit.model, found):
        small, scale = _channels(edit, weight)
        scales = edit.constant(f"{weight.layer.name}.weight_scale", np.asarray(scale).reshape(-1, 1))
        index = node.inputs[1]
        (looked_up,) = edit.before(node, "Gather", [small, index], {"axis": 0})
        (factor,) = edit.before(node, "Gather", [scales, index], {"axis": 0})
        (wide,) = edit.before(node, "Cast", [looked_up], {"to": FLOAT.value})
        (output,) = edit.before(node, "Mul", [wide, factor], like=node.outputs[0])
        edit.replace(node, output)


def halves(edit: Edit, found: Sequence[Weight]) -> None:
    """float16 weights, floats again when the graph is opened. Raises ExportError for one that float16 cannot hold."""
    for weight in found:
        extreme = float(np.abs(read(weight)).max(initial=0.0))
        if extreme > HALF_MAX:
            raise ExportError(
                f"{weight.layer.name}: its weight reaches {extreme:.3g}, float16 ends at {HALF_MAX:.0f}; keep the layer"
            )

        def make(weight: Weight = weight) -> NDArray[Any]:
            return read(weight).astype(np.float16)

        name = f"{weight.layer.name}.weight_half"
        small = edit.lazy(name, weight, make, FLOAT16, tensor_of(weight.value).shape)
        (wide,) = edit.before(_first(edit, weight), "Cast", [small], {"to": FLOAT.value}, like=weight.value)
        weight.value.replace_all_uses_with(wide)


def in_blocks(edit: Edit, found: Sequence[Weight], *, bits: int, block_size: int, symmetric: bool) -> None:
    """Linear layers as MatMulNBits: integers in blocks of inputs."""
    for node, weight in in_order(edit.model, found):
        addition = added_bias(node) if weight.operator == "MatMul" else None
        last, bias = addition or (node, bias_of(node) if weight.operator == "Gemm" else None)
        inputs, outputs = sizes(weight)
        stored = _blocks(edit, weight, bits, block_size, symmetric)
        attributes = {"K": inputs, "N": outputs, "bits": bits, "block_size": block_size, "accuracy_level": 1}
        (output,) = edit.before(
            last, "MatMulNBits", [node.inputs[0], *stored, None, bias], attributes, domain=MICROSOFT, like=last.outputs[0]
        )  # fmt: skip
        edit.replace(last, output)
        if last is not node:
            edit.graph.remove(node, safe=True)


def _blocks(edit: Edit, weight: Weight, bits: int, size: int, symmetric: bool) -> list[ir.Value | None]:
    """Integers, scales and zero points as they lie in MatMulNBits. Without the last, the zero is in the middle."""
    name, (inputs, outputs) = weight.layer.name, sizes(weight)
    count = -(-inputs // size)
    read(weight)  # a weight that is no number must not stop the writing

    @lru_cache(maxsize=1)  # the three are written one after the other
    def made() -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        found, scale, zeros = integers.blocks(matrix(weight), size, bits, symmetric)
        return integers.packed(found, bits), scale.reshape(-1), integers.packed(zeros, bits).reshape(-1)

    def part(number: int) -> NDArray[Any]:
        found = made()[number]
        if number == (1 if symmetric else 2):
            made.cache_clear()
        return found

    per_row = -(-count * bits // 8)
    return [
        edit.lazy(f"{name}.weight_quantized", weight, lambda: part(0), UINT8, (outputs, count, size * bits // 8)),
        edit.lazy(f"{name}.weight_scale", weight, lambda: part(1), FLOAT, (outputs * count,)),
        None if symmetric else edit.lazy(f"{name}.weight_zero", weight, lambda: part(2), UINT8, (outputs * per_row,)),
    ]


def _channels(edit: Edit, weight: Weight) -> tuple[ir.Value, NDArray[np.float32]]:
    """A weight's integers, in its own shape, and its channels' scales."""
    array = read(weight)
    scale = integers.scales(array, weight.axis, 8)

    def make() -> NDArray[Any]:
        return integers.rounded(read(weight), scale, weight.axis, 8)

    return edit.lazy(f"{weight.layer.name}.weight_quantized", weight, make, INT8, array.shape), scale


def _first(edit: Edit, weight: Weight) -> ir.Node:
    """The first node that uses a weight, whatever it has become."""
    users = {id(node) for node, _ in weight.value.uses()}
    return next(node for node in edit.graph if id(node) in users)
