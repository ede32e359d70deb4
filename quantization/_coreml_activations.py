"""Activations of a Core ML package rounded to 8 bits: their ranges over recorded calls, found by our evaluator, and the
pairs of `quantize` and `dequantize` before convolutions and linear layers.

coremltools finds ranges by Core ML's own predictions, which macOS alone makes; the pairs are those that it puts in.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ingot.exporters.graph_file import Progress
from ingot.exporters.mil import open_package
from ingot.runtimes.engines._coreml import PackagedGraph, Stage, stored_packages
from ingot.runtimes.engines._coreml_import import ct
from ingot.runtimes.signature import Signature

from ._coreml_blobs import immediate, text
from ._coreml_layers import FLOATS, Package, reads

MIL_pb2 = ct.proto.MIL_pb2
ROUNDED = ("conv", "linear")  # the operations whose input is rounded
Ranges = dict[str, tuple[float, float]]
Calls = Sequence[Mapping[str, NDArray[Any]]]


def rounded_inputs(package: Package, constants: Collection[str]) -> dict[str, str]:
    """The values that are rounded, by the operations that read them: inputs of those that compute with these weights."""
    users = {name for weight in package.weights if weight.constant in constants for name in weight.operations}
    fixed = {one.outputs[0].name for one in package.block.operations if one.type.startswith("const")}
    found = {}
    for operation in package.block.operations:
        if operation.type in ROUNDED and operation.outputs[0].name in users:
            (value,) = (name for _, key, name in reads(operation) if key == "x")
            if value not in fixed:
                found[operation.outputs[0].name] = value
    return found


def ranges(
    head: Path,
    signature: Signature,
    stored: Mapping[str, Any],
    calls: Calls,
    wanted: Collection[str],
    progress: Progress,
) -> Ranges:
    """The least and the greatest number of each wanted value over all calls, by the evaluator."""
    found: Ranges = {}

    def watch(name: str, value: Tensor) -> None:
        if name in wanted:
            least, most = found.get(name, (np.inf, -np.inf))
            found[name] = min(least, float(value.min())), max(most, float(value.max()))

    packages = stored_packages(stored)

    def stage(name: str) -> Stage:
        program = open_package(head.parent.parent / name)
        half = packages.precision == "float16"
        return Stage(tuple(port.name for port in program.inputs), lambda given: program.run(given, half, watch))

    graph = PackagedGraph(signature, packages, [stage(name) for name in packages.packages])
    for number, call in enumerate(calls):
        progress("calibrate", number / len(calls))
        graph.run(call)
    return found


class Pairs:
    """Puts `quantize` and `dequantize` in front of operations; values that several of them read are rounded once."""

    def __init__(self, package: Package, rounded: Mapping[str, str], ranges: Ranges, affine: bool) -> None:
        (function,) = package.spec.mlProgram.functions.values()
        types = [*function.inputs, *(out for one in package.block.operations for out in one.outputs)]
        self._types = {value.name: value.type for value in types}
        self._rounded, self._ranges, self._affine = rounded, ranges, affine
        self._made: set[str] = set()

    def __call__(self, operation: Any) -> list[Any]:
        """What goes in front of the operation, which then reads it."""
        if not operation.outputs or operation.outputs[0].name not in self._rounded:
            return []
        value = self._rounded[operation.outputs[0].name]
        operation.inputs["x"].arguments[0].name = f"{value}_dequantized"
        if value in self._made:
            return []
        self._made.add(value)
        return self._pair(value)

    def _pair(self, value: str) -> list[Any]:
        kind = self._types[value]
        scale, zero = rounding(
            self._ranges[value], FLOATS[MIL_pb2.DataType.Name(kind.tensorType.dataType)], self._affine
        )
        quantized, dequantized = f"{value}_quantized", f"{value}_dequantized"
        small = type(kind).FromString(kind.SerializeToString())
        small.tensorType.dataType = MIL_pb2.INT8
        constants = {"scale": immediate(scale), "output_dtype": text("int8")}
        if self._affine:
            constants["zero_point"] = immediate(zero)
        named = {key: f"{quantized}_{key}" for key in constants}
        both = {key: name for key, name in named.items() if key != "output_dtype"}
        return [
            *(_step("const", named[key], constant.type, val=constant) for key, constant in constants.items()),
            _step("quantize", quantized, small, {"input": value, **named}),
            _step("dequantize", dequantized, kind, {"input": quantized, **both}),
        ]


def rounding(span: tuple[float, float], dtype: Any, affine: bool) -> tuple[NDArray[Any], NDArray[np.int8]]:
    """The scale, as it is stored, and the zero point (int8) for values of this range, x ~ scale * (integer - zero).

        symmetric:  scale = max(|least|, |greatest|) / 127,   zero = 0
        affine:     scale = (greatest - least) / 255,         zero = round(-128 - least / scale)

    The affine range is widened until it holds 0. A value that is always 0 has scale 1.
    """
    least, greatest = min(span[0], 0.0), max(span[1], 0.0)
    exact = (greatest - least) / 255 if affine else max(-least, greatest) / 127
    scale = np.maximum(exact, np.finfo(dtype).smallest_subnormal if exact else 1.0).astype(dtype)
    zero = np.clip(np.round(-128 - least / float(scale)), -128, 127) if affine else 0
    return np.array(scale), np.array(zero, np.int8)


def _step(kind: str, name: str, value_type: Any, inputs: Mapping[str, str] | None = None, **attributes: Any) -> Any:
    operation = MIL_pb2.Operation(type=kind)
    result = operation.outputs.add()
    result.name = name
    result.type.CopyFrom(value_type)
    for key, source in (inputs or {}).items():
        operation.inputs[key].arguments.add().name = source
    for key, value in {"name": text(name), **attributes}.items():
        operation.attributes[key].CopyFrom(value)
    return operation
