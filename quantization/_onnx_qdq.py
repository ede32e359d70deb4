"""QuantizeLinear and DequantizeLinear around the layers of a graph: the form that ONNX Runtime, TensorRT and OpenVINO
read as integer arithmetic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ingot.runtimes.errors import ExportError

from . import _onnx_integers as integers
from ._onnx_calibration import Observed, limits, rounding_error
from ._onnx_graph import Edit, Weight

Scale = tuple[np.floating[Any], np.integer[Any]]
# A bias is an int32 of the step s_activation * s_weight; half of the range is left for the sums that it is added to.
BIAS_MAX = 2.0**30


@dataclass(frozen=True)
class Rounding:
    """How ranges become scales."""

    signed: bool
    method: str = "minmax"
    percentile: float = 99.99

    def scale(self, name: str, observed: Observed, by: NDArray[np.float32] | None = None) -> Scale:
        """Scale and zero point of an activation, for a layer whose inputs are divided `by` something by channel."""
        if by is not None:
            assert observed.channels is not None
            extreme = float((observed.channels / by).max(initial=0.0))
            observed = Observed(-extreme, extreme, observed.sample)
        try:
            ends = (
                (observed.low, observed.high)
                if by is not None or not np.isfinite([observed.low, observed.high]).all()
                else limits(
                    observed, self.method, self.percentile,
                    lambda low, high, sample: rounding_error(low, high, sample, signed=self.signed),
                )
            )  # fmt: skip
            return integers.activation_scale(*ends, signed=self.signed)
        except ValueError as error:
            raise ExportError(
                f"the activation {name!r} cannot be rounded: {error} in calibration; keep the layers that read it"
            ) from error


def round_activation(edit: Edit, place: ir.Node, value: ir.Value, scale: Scale, dtype: ir.DataType) -> ir.Value:
    """A value rounded to 8 bits in front of a node, as floats again."""
    step, zero = _constants(edit, f"{value.name}.activation", scale, dtype)
    (small,) = edit.before(place, "QuantizeLinear", [value, step, zero])
    (wide,) = edit.before(place, "DequantizeLinear", [small, step, zero], like=value)
    return wide


def round_output(edit: Edit, node: ir.Node, scale: Scale, dtype: ir.DataType) -> None:
    """What a node answers rounded to 8 bits, for everything that reads it."""
    output = node.outputs[0]
    step, zero = _constants(edit, f"{output.name}.activation", scale, dtype)
    down = ir.node("QuantizeLinear", [output, step, zero])
    up = ir.node("DequantizeLinear", [down.outputs[0], step, zero])
    edit.graph.insert_after(node, [down, up])
    wide, name = up.outputs[0], output.name
    wide.type, wide.shape = output.type, output.shape
    output.replace_all_uses_with(wide, replace_graph_outputs=True)
    down.replace_input_with(0, output)
    output.name, wide.name = f"{name}_exact", name


def round_bias(edit: Edit, place: ir.Node, name: str, bias: NDArray[np.float32], step: NDArray[np.float32]) -> ir.Value:
    """A layer's bias as int32 of one step for each output."""
    small = edit.constant(f"{name}.bias_quantized", np.rint(bias / step).astype(np.int32))
    (wide,) = edit.before(place, "DequantizeLinear", [small, edit.constant(f"{name}.bias_scale", step)], {"axis": 0})
    return wide


def scales_with_bias(
    weight: NDArray[np.float32], axis: int, bits: int, bias: NDArray[np.float32] | None, activation: np.floating[Any]
) -> NDArray[np.float32]:
    """Scales by channel under which the bias fits int32: larger ones where a bias is far over its weights.

    A channel of zeros has what its bias asks for, and 1 without one.
    """
    if bias is None:
        return integers.scales(weight, axis, bits)
    found = integers.scales(weight, axis, bits)
    others = tuple(dim for dim in range(weight.ndim) if dim != axis)
    found = np.where(np.abs(weight).max(axis=others, initial=0.0) > 0, found, np.float32(0))
    wanted = (np.abs(bias) / (np.float64(activation) * BIAS_MAX)).astype(np.float32)
    found = np.maximum(found, wanted)
    return np.where(found > 0, found, np.float32(1)).astype(np.float32)


def activations(found: Sequence[Weight], *, outputs: bool) -> list[str]:
    """What these layers read, and what convolutions give where that is rounded too; by name, each once."""
    names: dict[str, None] = {}
    for weight in found:
        for node in weight.nodes:
            names.setdefault(_name(node.inputs[0]))
            if outputs and weight.layer.kind == "conv":
                names.setdefault(_name(node.outputs[0]))
    return list(names)


def scale_for(value: ir.Value | None, scales: Mapping[str, Scale]) -> Scale:
    """An activation's scale and zero point."""
    return scales[_name(value)]


def _name(value: ir.Value | None) -> str:
    assert value is not None
    assert value.name is not None
    return value.name


def _constants(edit: Edit, name: str, scale: Scale, dtype: ir.DataType) -> tuple[ir.Value, ir.Value]:
    """`dtype` is that of the floats on both sides."""
    step = np.asarray(scale[0]).astype(dtype.numpy())
    return edit.constant(f"{name}_scale", step), edit.constant(f"{name}_zero", np.asarray(scale[1]))
