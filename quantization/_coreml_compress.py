"""One weight of a Core ML package as the operation that unpacks it, and a package written anew with such operations.

Up to iOS 17 such an operation has what it unpacks as attributes, from iOS 18 on as inputs, in other forms.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ingot.exporters.coreml_chunks import MODEL, WEIGHTS
from ingot.runtimes.engines._coreml_import import ct

from ._coreml_blobs import WeightWriter, text
from ._coreml_layers import Package, Weight
from ._coreml_numbers import pack, palette, psnr_db, symmetric, unpalette

MIL_pb2 = ct.proto.MIL_pb2
IOS18 = 8  # the operation set's number
BITS = {6: (1, 2, 4, 6, 8), 7: (1, 2, 4, 6, 8), IOS18: (1, 2, 3, 4, 6, 8)}
Array = NDArray[Any]
Compress = Callable[[WeightWriter, Weight, Array], Any]


@dataclass(frozen=True)
class Linear:
    """Integers of 8 bits with a scale for each output channel, or of 4 with one for each `block` input channels of it."""

    opset: int
    bits: int = 8
    block: int | None = None

    def __call__(self, writer: WeightWriter, weight: Weight, array: Array) -> Any:
        """The operation that unpacks it, what it unpacks written."""
        out, into = weight.axes
        blocks = list(weight.shape)
        blocks[out] = 1
        if self.block is not None:
            blocks[into] = largest_divisor(weight.shape[into], self.block)
        integers, scale = symmetric(array, self.bits, blocks, array.dtype)
        if self.opset >= IOS18:
            data = writer.value(integers, f"INT{self.bits}")
            return _operation("constexpr_blockwise_shift_scale", self.opset, data=data, scale=writer.value(scale))
        per_channel = scale.reshape(-1)
        return _operation(
            "constexpr_affine_dequantize",
            self.opset,
            quantized_data=writer.value(integers),
            zero_point=writer.value(np.zeros_like(per_channel, np.int8)),
            scale=writer.value(per_channel),
            axis=writer.value(np.array(out, np.int32)),
        )


@dataclass(frozen=True)
class Palette:
    """Indices of `bits` into a table of the values there are; with `min_psnr` of the fewest bits that hold it.

    `rows` output channels share a table, else all of a weight do.
    """

    opset: int
    bits: int
    rows: int | None = None
    min_psnr: float | None = None

    def __call__(self, writer: WeightWriter, _: Weight, array: Array) -> Any:
        """The operation that unpacks it, what it unpacks written."""
        indices, tables, bits = self.compressed(array)
        if self.opset >= IOS18:
            shape = (len(tables), *(1,) * (array.ndim - 1), 2**bits, 1)
            values = {"indices": writer.value(indices, f"UINT{bits}"), "lut": writer.value(tables.reshape(shape))}
        else:
            values = {
                "indices": writer.value(pack(indices, bits)),
                "lut": writer.value(tables[0]),
                "shape": writer.value(np.array(array.shape, np.uint32)),
            }
        return _operation("constexpr_lut_to_dense", self.opset, **values)

    def compressed(self, array: Array) -> tuple[Array, Array, int]:
        """Indices, tables, and the bits that were chosen."""
        groups = len(array) // largest_divisor(len(array), self.rows) if self.rows else 1
        allowed = [bits for bits in BITS[min(self.opset, IOS18)] if bits <= self.bits]
        for bits in allowed if self.min_psnr is not None else allowed[-1:]:
            indices, tables = palette(array, bits, groups, array.dtype)
            if self.min_psnr is None or psnr_db(array, unpalette(indices, tables)) >= self.min_psnr:
                break
        return indices, tables, bits


def largest_divisor(whole: int, most: int) -> int:
    """The largest number up to `most` that divides `whole`."""
    return next(number for number in range(min(whole, most), 0, -1) if whole % number == 0)


def _operation(kind: str, opset: int, **values: Any) -> Any:
    operation = MIL_pb2.Operation(type=kind)
    for name, value in values.items():
        if opset >= IOS18:
            operation.inputs[name].arguments.add().value.CopyFrom(value)
        else:
            operation.attributes[name].CopyFrom(value)
    return operation


def write_package(
    package: Package, target: Path, chosen: Mapping[str, Compress], label: str, insert: Callable[[Any], list[Any]],
    told: Callable[[float], None],
) -> None:  # fmt: skip
    """Write the package with the weights of these constants compressed; everything else as it is, to the bit.

    `insert` gives the operations that go in front of one, which it may change. `told` hears how much is done.
    """
    if target.exists():
        shutil.rmtree(target)
    shutil.copytree(package.path, target, ignore=lambda _, names: {MODEL.name, WEIGHTS.name} & set(names))
    weights = {weight.constant: weight for weight in package.weights if weight.constant in chosen}
    done, total = 0, sum(math.prod(weight.shape) for weight in weights.values()) or 1
    written: list[Any] = []
    (target / WEIGHTS).parent.mkdir(parents=True, exist_ok=True)
    with WeightWriter(target / WEIGHTS, package.weight_file) as writer:
        for operation in package.block.operations:
            written += insert(operation)
            name = operation.outputs[0].name if operation.outputs else ""
            if operation.type == "const" and name in weights:
                weight = weights[name]
                made = chosen[name](writer, weight, package.read(weight))
                made.attributes["name"].CopyFrom(text(name))
                made.outputs.add().CopyFrom(operation.outputs[0])
                written.append(made)
                done += math.prod(weight.shape)
                told(done / total)
            else:
                for value in _blobs(operation):
                    writer.copy(value)
                written.append(operation)
    _write_model(package, written, target, label)


def _write_model(package: Package, operations: list[Any], target: Path, label: str) -> None:
    kept = [MIL_pb2.Operation.FromString(operation.SerializeToString()) for operation in operations]
    del package.block.operations[:]
    package.block.operations.extend(kept)
    metadata = package.spec.description.metadata
    metadata.shortDescription = ", ".join(filter(None, (metadata.shortDescription, label)))
    (target / MODEL).write_bytes(package.spec.SerializeToString())


def _blobs(operation: Any) -> Iterator[Any]:
    """Every value of an operation and its blocks that lies in the weight file."""
    given = [binding.value for argument in operation.inputs.values() for binding in argument.arguments]
    for value in (*operation.attributes.values(), *given):
        if value.WhichOneof("value") == "blobFileValue":
            yield value
    for block in operation.blocks:
        for inner in block.operations:
            yield from _blobs(inner)
