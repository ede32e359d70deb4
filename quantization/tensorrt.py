"""Explicit quantization for TensorRT: QuantizeLinear and DequantizeLinear in the graph that a plan is built of.

As its documentation asks: symmetric, zero points 0, activations per tensor, int8 weights per output channel, float8 ones per
tensor, int4 ones in blocks of inputs; biases stay floats; weights are stored as integers in front of their
DequantizeLinear. No plan was ever built of such a graph by us: ONNX Runtime on the CPU computes what the operators say.

SmoothQuant (Xiao et al., 2023, arXiv:2211.10438): inputs X of linear layers W are divided by s_j = max|X_j|^a / max|W_j|^(1-a)
and weights multiplied by it, channel by channel, so that outliers of activations go into weights, which have a scale each.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ingot.exporters.graph_file import GraphFile, Progress
from ingot.runtimes.errors import ExportError, InputError, unknown

from . import _onnx_integers as integers
from ._onnx_calibration import Observed, observe, require_method
from ._onnx_file import load
from ._onnx_graph import Edit, Weight, bias_of, chosen, in_order, matrix, read, sizes, weights, write
from ._onnx_qdq import Rounding, Scale, activations
from .scheme import Layer, Source

SCHEMES = {
    "int8-static": "int8 weights per channel, int8 activations by recorded ranges, as explicit Q/DQ",
    "fp8": "float8 (e4m3) weights and activations by recorded ranges, as explicit Q/DQ",
    "int4-weights": "linear layers in int4 blocks behind DequantizeLinear, computed in floats",
}
KINDS = {"int8-static": ("linear", "conv"), "fp8": ("linear", "conv"), "int4-weights": ("linear",)}
DTYPES = ("FLOAT", "FLOAT16", "BFLOAT16")
FLOAT8_MAX = 448.0
BLOCK_OPSET = 21  # the first whose DequantizeLinear has blocks and int4
BLOCK_SIZE = 64


def layers(source: Source, scheme: str) -> list[Layer]:
    """What a scheme could quantize in this graph, in its order."""
    _require_known(scheme)
    return [weight.layer for weight in weights(load(source.path), KINDS[scheme], dtypes=DTYPES)]


def default_keep(source: Source, scheme: str, *, block_size: int = BLOCK_SIZE) -> frozenset[str]:
    """Linear layers whose inputs do not come in whole int4 blocks."""
    _require_known(scheme)
    if scheme != "int4-weights":
        return frozenset()
    found = weights(load(source.path), KINDS[scheme], dtypes=DTYPES)
    return frozenset(weight.layer.name for weight in found if sizes(weight)[0] % block_size)


def quantize(
    source: Source,
    folder: Path,
    *,
    scheme: str,
    keep: Collection[str] = (),
    calls: Sequence[Mapping[str, NDArray[Any]]] = (),
    name: str,
    progress: Progress | None = None,
    method: str = "minmax",
    percentile: float = 99.99,
    smooth: float | None = None,
    block_size: int = BLOCK_SIZE,
) -> GraphFile:
    """Write `name`.onnx into `folder`, the source's graph with Q/DQ at the layers that are not in `keep`.

    `method` takes an activation's range from its extremes (minmax), the `percentile` of its values, or where the squared
    error is smallest (mse); float8 always takes the extremes. `smooth` is SmoothQuant's exponent, 0 to 1, for int8-static's
    linear layers. The plan that the source may have beside it is not this graph's; a new one is built where it is opened.

    Raises InputError for unknown options and layers, and for a calibrated scheme without `calls`; ExportError for weights
    and activations that are no numbers.
    """
    _require_known(scheme)
    require_method(method, percentile)
    _require_options(scheme, smooth, block_size, calls)
    edit = Edit(source.path)
    found = chosen(weights(edit.model, KINDS[scheme], dtypes=DTYPES), keep)
    _require_opset(edit.model, found, scheme)
    if scheme == "int4-weights":
        fitting = default_keep(source, scheme, block_size=block_size)
        _blocks(edit, [weight for weight in found if weight.layer.name not in fitting], block_size)
    else:
        rounding = Rounding(signed=True, method=method if scheme == "int8-static" else "minmax", percentile=percentile)
        _explicit(edit, source, found, calls, scheme, rounding, smooth, progress)
    stored = {key: value for key, value in source.stored.items() if key in ("build", "precision")}
    return write(edit, source, folder, scheme=scheme, name=name, progress=progress, stored=stored)


def _explicit(
    edit: Edit, source: Source, found: Sequence[Weight], calls: Sequence[Mapping[str, NDArray[Any]]], scheme: str,
    rounding: Rounding, smooth: float | None, progress: Progress | None,
) -> None:  # fmt: skip
    names = activations(found, outputs=False)
    everything = weights(edit.model, KINDS[scheme], dtypes=DTYPES)
    # all layers are watched, those that are kept too: the next call, with others kept, finds the answers here
    wide = _linear_groups(edit, everything) if smooth is not None else {}
    groups = {name: group for name, group in _linear_groups(edit, found).items() if name in wide}
    channels = {name: sizes(group[0])[0] for name, group in wide.items()}
    watched = activations(everything, outputs=False)
    observed = observe(source.path, watched, calls, channels=channels, progress=progress) if names else {}
    divided, one = {}, np.float32(1)
    for name, group in groups.items():
        by = smoothing(_magnitudes(name, observed[name]), [matrix(weight) for weight in group], smooth or 0.0)
        divided[name] = one / integers.storable(one / by, _floats(group[0]))  # by what the graph holds of it
    scales = {name: rounding.scale(name, observed[name], divided.get(name)) for name in names}
    rounded: dict[str, ir.Value] = {}
    for node, weight in list(in_order(edit.model, found)):
        value = node.inputs[0]
        assert value is not None
        assert value.name is not None
        factor = divided.get(value.name) if weight.layer.kind == "linear" else None
        key = f"{value.name}.{'smooth' if factor is not None else 'plain'}"
        if key not in rounded:
            rounded[key] = _activation(edit, node, value, scales[value.name], factor, scheme, _floats(weight))
        node.replace_input_with(0, rounded[key])
        node.replace_input_with(1, _weight(edit, node, weight, factor, scheme))


def smoothing(
    magnitudes: NDArray[np.float32], matrices: Sequence[NDArray[np.float32]], alpha: float
) -> NDArray[np.float32]:
    """What to divide an activation's channels by, for all the layers (inputs, outputs) that read it: (inputs,).

    1 where a channel or its weights are nothing but zeros.
    """
    largest = np.max([np.abs(matrix).max(axis=1) for matrix in matrices], axis=0)
    usable = (magnitudes > 0) & (largest > 0)
    safe = np.where(usable, magnitudes, 1), np.where(usable, largest, 1)
    return np.where(usable, safe[0] ** alpha / safe[1] ** (1 - alpha), 1).astype(np.float32)


def _linear_groups(edit: Edit, found: Sequence[Weight]) -> dict[str, list[Weight]]:
    """Linear layers by the activation that they read; none for one that a convolution reads too."""
    groups: dict[str, list[Weight]] = {}
    taken = set()
    for node, weight in in_order(edit.model, found):
        value = node.inputs[0]
        assert value is not None
        assert value.name is not None
        if weight.layer.kind == "linear" and len(weight.nodes) == 1:
            groups.setdefault(value.name, []).append(weight)
        else:
            taken.add(value.name)
    return {name: group for name, group in groups.items() if name not in taken}


def _activation(
    edit: Edit, node: ir.Node, value: ir.Value, scale: Scale, by: NDArray[np.float32] | None, scheme: str,
    dtype: np.dtype[Any],
) -> ir.Value:  # fmt: skip
    """An activation divided, rounded, and as it was again."""
    name = str(value.name)
    if by is not None:
        factor = edit.constant(f"{name}.smooth", (1 / by).astype(dtype))
        (value,) = edit.before(node, "Mul", [value, factor], like=value)
    step = np.asarray(scale[0] * np.float32(127 / FLOAT8_MAX) if scheme == "fp8" else scale[0])
    zero = np.zeros((), ml_dtypes.float8_e4m3fn) if scheme == "fp8" else np.int8(0)
    steps = edit.constant(f"{name}.activation_scale", integers.storable(step, dtype).astype(dtype))
    zeros = edit.constant(f"{name}.activation_zero", zero)
    (small,) = edit.before(node, "QuantizeLinear", [value, steps, zeros])
    (wide,) = edit.before(node, "DequantizeLinear", [small, steps, zeros], like=value)
    return wide


def _weight(edit: Edit, node: ir.Node, weight: Weight, by: NDArray[np.float32] | None, scheme: str) -> ir.Value:
    """A weight as small numbers and their DequantizeLinear."""
    small, scale = (_float8 if scheme == "fp8" else _int8)(edit, weight, by)
    attributes = {} if scheme == "fp8" else {"axis": weight.axis}
    name = weight.layer.name
    assert small.dtype is not None
    steps = edit.constant(f"{name}.weight_scale", scale.astype(_floats(weight)))
    zeros = edit.constant(f"{name}.weight_zero", np.zeros(scale.shape, small.dtype.numpy()))
    (wide,) = edit.before(node, "DequantizeLinear", [small, steps, zeros], attributes, like=weight.value)
    return wide


def _int8(edit: Edit, weight: Weight, by: NDArray[np.float32] | None) -> tuple[ir.Value, NDArray[np.float32]]:
    array = _multiplied(weight, by)
    scale = integers.storable(integers.scales(array, weight.axis, 8), _floats(weight))

    def make() -> NDArray[Any]:
        return integers.rounded(_multiplied(weight, by), scale, weight.axis, 8)

    return edit.lazy(f"{weight.layer.name}.weight_quantized", weight, make, ir.DataType.INT8, array.shape), scale


def _float8(edit: Edit, weight: Weight, by: NDArray[np.float32] | None) -> tuple[ir.Value, NDArray[np.float32]]:
    array = _multiplied(weight, by)
    scale = integers.storable(integers.scale_of(np.abs(array).max(initial=0.0), FLOAT8_MAX), _floats(weight))

    def make() -> NDArray[Any]:
        again = (_multiplied(weight, by) / scale).clip(-FLOAT8_MAX, FLOAT8_MAX)
        return np.asarray(again.astype(ml_dtypes.float8_e4m3fn))

    return edit.lazy(
        f"{weight.layer.name}.weight_quantized", weight, make, ir.DataType.FLOAT8E4M3FN, array.shape
    ), scale


def _blocks(edit: Edit, found: Sequence[Weight], size: int) -> None:
    """Linear layers as MatMul of int4 blocks along their inputs, and an addition where there was a bias."""
    _to_block_opset(edit.model)
    for node, weight in list(in_order(edit.model, found)):
        dtype, name = _floats(weight), weight.layer.name
        inputs, outputs = matrix(weight).shape

        def make(weight: Weight = weight, dtype: np.dtype[Any] = dtype) -> NDArray[Any]:
            return int4_blocks(matrix(weight), size, dtype)[0]

        small = edit.lazy(f"{name}.weight_quantized", weight, make, ir.DataType.INT4, (inputs, outputs))
        scales = int4_blocks(matrix(weight), size, dtype)[1]
        steps = edit.constant(f"{name}.weight_scale", scales.astype(dtype))
        attributes = {"axis": 0, "block_size": size}
        (wide,) = edit.before(node, "DequantizeLinear", [small, steps], attributes)
        wide.type, wide.shape = weight.value.type, ir.Shape((inputs, outputs))
        (output,) = edit.before(node, "MatMul", [node.inputs[0], wide], like=node.outputs[0])
        bias = bias_of(node) if weight.operator == "Gemm" else None
        if bias is not None:
            (output,) = edit.before(node, "Add", [output, bias], like=node.outputs[0])
        edit.replace(node, output)


def int4_blocks(
    array: NDArray[np.float32], size: int, dtype: np.dtype[Any]
) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """A matrix (inputs, outputs) as integers -7 to 7 and scales (inputs / size, outputs), symmetric; scales that `dtype`
    holds."""
    inputs, outputs = array.shape
    grouped = array.reshape(-1, size, outputs)
    scale = integers.storable(integers.scale_of(np.abs(grouped).max(axis=1), integers.largest(4)), dtype)
    found = np.clip(np.rint(grouped / scale[:, None]), -7, 7)
    return found.reshape(inputs, outputs).astype(ml_dtypes.int4), scale


def _require_opset(model: ir.Model, found: Sequence[Weight], scheme: str) -> None:
    """Raise InputError for a graph whose opset has not what is put in: 16-bit scales and float8 came with 19; int4 came
    with 21, to which a graph of 20 can be taken."""
    opset, needed = model.opset_imports[""], 0
    if scheme == "int4-weights":
        needed = BLOCK_OPSET - 1
    elif scheme == "fp8" or any(weight.value.dtype != ir.DataType.FLOAT for weight in found):
        needed = 19
    if found and opset < needed:
        raise InputError(
            f"{scheme} of these weights needs a graph of opset {needed} or newer, this one has {opset}; "
            "export it with --set tensorrt.opset=20"
        )


def _to_block_opset(model: ir.Model) -> None:
    """Say that the graph is of the opset that has blocks. What it has of opset 20 means the same there, but for one."""
    if model.opset_imports[""] < BLOCK_OPSET:
        if any(node.op_type == "GroupNormalization" and not node.domain for node in model.graph):
            raise ExportError(
                f"the graph has GroupNormalization of opset {model.opset_imports['']}, which means another thing in "
                f"{BLOCK_OPSET}, the first with int4 blocks; export with opset={BLOCK_OPSET}"
            )
        model.graph.opset_imports[""] = BLOCK_OPSET


def _floats(weight: Weight) -> np.dtype[Any]:
    """The type of a weight, and of the scales beside it."""
    assert weight.value.dtype is not None
    return weight.value.dtype.numpy()


def _multiplied(weight: Weight, by: NDArray[np.float32] | None) -> NDArray[np.float32]:
    """A weight as it is stored, its inputs multiplied."""
    array = read(weight)
    if by is None:
        return array
    return array * (by[None, :] if weight.turned else by[:, None])


def _magnitudes(name: str, observed: Observed) -> NDArray[np.float32]:
    assert observed.channels is not None
    if not np.isfinite([observed.low, observed.high, *observed.channels]).all():
        raise ExportError(f"the activation {name!r} is not finite in calibration; keep the layers that read it")
    return observed.channels


def _require_options(scheme: str, smooth: float | None, block_size: int, calls: Sequence[Any]) -> None:
    if scheme != "int4-weights" and not calls:
        raise InputError(f"{scheme} needs recorded inputs of the component; calibrate with prompts")
    if smooth is not None and (scheme != "int8-static" or not 0 <= smooth <= 1):
        raise InputError(f"smooth={smooth}: it is between 0 and 1, and for int8-static only")
    if block_size not in (32, 64, 128):
        raise InputError(f"block_size={block_size}: int4 blocks have 32, 64 or 128 weights")


def _require_known(scheme: str) -> None:
    if scheme not in SCHEMES:
        raise unknown("scheme of TensorRT", scheme, SCHEMES)
