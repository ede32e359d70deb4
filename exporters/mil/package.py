"""Read a Core ML package from disk: its manifest, the protobuf of its program, what it takes and gives.

It reads what was written without coremltools' own loader, which would infer values and hold every weight in memory;
only the classes of the protobuf messages are coremltools'.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from ingot.runtimes.engines import _coreml_import  # noqa: F401 - first: without it coremltools warns eight times

# isort: split
from coremltools.proto import FeatureTypes_pb2, MIL_pb2, Model_pb2

from ingot.runtimes.errors import ExportError

from .blobs import WeightFile, decode, stored_bytes, to_tensor
from .graph import STORAGE, Block, Constant, Operation, Result, TensorType, Value

ARRAY_TYPES = {"FLOAT32": np.float32, "FLOAT16": np.float16, "DOUBLE": np.float64, "INT32": np.int32, "INT8": np.int8}
IMMEDIATES = {"floats", "ints", "bools", "longInts", "doubles", "strings", "bytes"}


class Port(NamedTuple):
    """An input or output as the package declares it. `shape` is the only one, or that of a package that takes others
    too: `ranges` has the least and the greatest size (None: unbounded) of every dimension, `enumerated` every shape."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    ranges: tuple[tuple[int, int | None], ...] = ()
    enumerated: tuple[tuple[int, ...], ...] = ()

    def admits(self, shape: tuple[int, ...]) -> bool:
        """Whether an array of this shape may go in."""
        if self.enumerated:
            return shape in self.enumerated
        ranges = self.ranges or tuple((size, size) for size in self.shape)
        return len(shape) == len(ranges) and all(
            least <= size and (most is None or size <= most) for size, (least, most) in zip(shape, ranges, strict=True)
        )

    def sizes(self) -> str:
        """The shapes that may go in, in words."""
        if self.enumerated:
            return " or ".join(str(list(shape)) for shape in self.enumerated)
        spans = (str(a) if a == b else f"{a}..{'' if b is None else b}" for a, b in self.ranges)
        return f"[{', '.join(spans)}]" if self.ranges else str(list(self.shape))


@dataclass(frozen=True)
class Package:
    """What a package says: its inputs and outputs, the program's block, and by name the types of the block's inputs."""

    path: Path
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    input_types: Mapping[str, TensorType]
    main: Block


def read_package(path: Path) -> Package:
    """Read an .mlpackage folder, or the one that a Manifest.json heads.

    Raises ExportError when it is not a package, holds no ML program, or is damaged.
    """
    folder = path.parent if path.name == "Manifest.json" else path
    model = _model_file(folder)
    spec = Model_pb2.Model()
    try:
        spec.ParseFromString(model.read_bytes())
    except Exception as error:  # protobuf's own class, whose module differs between its versions
        raise ExportError(f"{model} is not a Core ML model: {error}") from error
    kind = spec.WhichOneof("Type")
    if kind != "mlProgram":
        raise ExportError(f"{folder.name} holds a {kind or 'nothing'}; the evaluator reads ML programs (mlProgram)")
    if "main" not in spec.mlProgram.functions:
        names = ", ".join(sorted(spec.mlProgram.functions)) or "none"
        raise ExportError(f"{folder.name} has no function 'main'; it has: {names}")
    function = spec.mlProgram.functions["main"]
    block = function.block_specializations[function.opset]
    types = {item.name: _tensor_type(item.type, item.name) for item in function.inputs}
    return Package(
        folder,
        tuple(_port(item) for item in spec.description.input),
        tuple(_port(item) for item in spec.description.output),
        types,
        _Reader(model.parent).block(block, tuple(types)),
    )


def _model_file(folder: Path) -> Path:
    try:
        manifest = json.loads((folder / "Manifest.json").read_text())
        inside = PurePosixPath(manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]["path"])
    except (OSError, ValueError, KeyError) as error:
        raise ExportError(f"{folder} is not a Core ML package: its Manifest.json cannot be read ({error})") from error
    model = folder / "Data" / inside
    if ".." in inside.parts or inside.is_absolute() or not model.is_file():
        raise ExportError(f"{folder} names the model {inside}, which it does not hold")
    return model


def _port(item: FeatureTypes_pb2.FeatureType) -> Port:
    kind = item.type.WhichOneof("Type")
    if kind != "multiArrayType":
        raise ExportError(f"{item.name!r} is a {kind}; the evaluator takes and gives arrays (multiArrayType)")
    array = item.type.multiArrayType
    dtype = FeatureTypes_pb2.ArrayFeatureType.ArrayDataType.Name(array.dataType)
    if dtype not in ARRAY_TYPES:
        raise ExportError(f"{item.name!r} is an array of {dtype}; the evaluator knows {', '.join(ARRAY_TYPES)}")
    ranges = tuple(
        (span.lowerBound, span.upperBound if span.upperBound >= 0 else None) for span in array.shapeRange.sizeRanges
    )
    enumerated = tuple(tuple(shape.shape) for shape in array.enumeratedShapes.shapes)
    return Port(item.name, np.dtype(ARRAY_TYPES[dtype]), tuple(array.shape), ranges, enumerated)


def _tensor_type(kind: MIL_pb2.ValueType, name: str) -> TensorType:
    if kind.WhichOneof("type") != "tensorType":
        raise ExportError(f"{name!r} is a {kind.WhichOneof('type')}; the evaluator knows tensors")
    tensor = kind.tensorType
    shape = tuple(d.constant.size if d.WhichOneof("dimension") == "constant" else None for d in tensor.dimensions)
    return TensorType(MIL_pb2.DataType.Name(tensor.dataType), shape)


@dataclass
class _Reader:
    """Turns protobuf blocks into ours; `folder` is what a weight's path calls @model_path."""

    folder: Path
    files: dict[str, WeightFile] = field(default_factory=dict)

    def block(self, block: MIL_pb2.Block, inputs: tuple[str, ...]) -> Block:
        constants: dict[str, Constant] = {}
        compressed: dict[str, Operation] = {}
        operations = []
        for item in block.operations:
            if item.type == "const":
                constants[item.outputs[0].name] = self.constant(item.attributes["val"], item.outputs[0].name)
                continue
            operation = self.operation(item)
            if item.type.startswith("constexpr_"):
                compressed |= {result.name: operation for result in operation.results}
            else:
                operations.append(operation)
        return Block(inputs, tuple(block.outputs), constants, compressed, tuple(operations))

    def operation(self, item: MIL_pb2.Operation) -> Operation:
        results = tuple(Result(out.name, _tensor_type(out.type, out.name)) for out in item.outputs)
        label = results[0].name if results else item.type
        # iOS 15's and 16's constexpr operations keep their inputs as attributes
        arguments: dict[str, tuple[str | Constant, ...]] = {
            key: (self.constant(value, label),) for key, value in item.attributes.items() if key != "name"
        }
        for key, argument in item.inputs.items():
            arguments[key] = tuple(
                binding.name if binding.WhichOneof("binding") == "name" else self.constant(binding.value, label)
                for binding in argument.arguments
            )
        blocks = tuple(self.block(inner, tuple(i.name for i in inner.inputs)) for inner in item.blocks)
        return Operation(item.type, arguments, results, blocks)

    def constant(self, value: MIL_pb2.Value, name: str) -> Constant:
        kind = _tensor_type(value.type, name)
        if kind.dtype not in STORAGE and kind.dtype != "STRING":
            raise ExportError(
                f"{name!r} is a constant of {kind.dtype}; the evaluator knows {', '.join(STORAGE)}, STRING"
            )
        if value.WhichOneof("value") == "blobFileValue":
            file = self.weight_file(value.blobFileValue.fileName)
            return Constant(kind, partial(file.read, value.blobFileValue.offset, kind))
        found = _immediate(value.immediateValue, kind, name)
        return Constant(kind, lambda: found)

    def weight_file(self, name: str) -> WeightFile:
        if name not in self.files:
            inside = PurePosixPath(name.removeprefix("@model_path/"))
            if ".." in inside.parts or inside.is_absolute():
                raise ExportError(f"the program names the weight file {name}, which lies outside the package")
            self.files[name] = WeightFile(self.folder / inside)
        return self.files[name]


def _immediate(value: MIL_pb2.Value.ImmediateValue, kind: TensorType, name: str) -> Value:
    """A value that stands in the program itself."""
    field_name = value.tensor.WhichOneof("value") if value.WhichOneof("value") == "tensor" else None
    if field_name not in IMMEDIATES:
        raise ExportError(f"{name!r} is a constant that is no tensor ({value.WhichOneof('value')})")
    values = getattr(value.tensor, field_name).values
    if kind.dtype == "STRING":
        return str(values[0])
    if field_name == "bytes":
        content = np.frombuffer(values, np.uint8).copy()
        if len(content) != stored_bytes(kind):
            raise ExportError(f"{name!r} is declared as {kind} and holds {len(content)} bytes")
        return decode(content, kind)
    shape = tuple(size for size in kind.shape if size is not None)
    array = np.array(values, STORAGE[kind.dtype].on_disk)
    if array.size != int(np.prod(shape, dtype=np.int64)):
        raise ExportError(f"{name!r} is declared as {kind} and holds {array.size} values")
    return to_tensor(array.reshape(shape), kind.dtype)
