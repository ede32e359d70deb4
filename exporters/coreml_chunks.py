"""A package split in two, each with about half of the weights, so that neither passes what an iPhone lets a model have.

The cut is made in the saved protobuf: every operation stays what it was, and so does every bit of the weights.
coremltools has `models.utils.bisect_model` for it, which runs off macOS too; but in 9.0 it counts a weight where its
constant stands, and a program from `torch.export` has every constant in front, so that it cuts before the first operation.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from ingot.runtimes.engines._coreml_import import ct
from ingot.runtimes.errors import ExportError

from .coreml_blobs import copy_blobs

FeatureTypes_pb2, MIL_pb2, Model_pb2 = ct.proto.FeatureTypes_pb2, ct.proto.MIL_pb2, ct.proto.Model_pb2
MODEL = Path("Data", "com.apple.CoreML", "model.mlmodel")
WEIGHTS = Path("Data", "com.apple.CoreML", "weights", "weight.bin")
# A cut may leave this much of the weights on either side of half, where fewer values cross it.
SLACK = 0.06
BYTES = {MIL_pb2.FLOAT16: 2, MIL_pb2.FLOAT32: 4, MIL_pb2.INT32: 4, MIL_pb2.BOOL: 1}
ARRAY_TYPES = {MIL_pb2.INT32: FeatureTypes_pb2.ArrayFeatureType.INT32}


@dataclass(frozen=True)
class Cut:
    """The operations of each half, with its constants, and the values that cross, by name."""

    first: list[Any]
    second: list[Any]
    crossing: dict[str, Any]


def split_package(package: Path, chunks: Sequence[Path]) -> None:
    """Write a package of fixed sizes as two, and remove it. Raises ExportError for one that cannot be split."""
    spec = ct.utils.load_spec(str(package))
    block = _block(spec)[1]
    cut = find_cut(list(block.operations), list(block.outputs))
    for chunk, half in zip(chunks, (_first(spec, cut), _second(spec, cut)), strict=True):
        folder = chunk.with_suffix(".weights")
        folder.mkdir(parents=True)
        copy_blobs(_block(half)[1], package / WEIGHTS, folder / WEIGHTS.name)
        ct.utils.save_spec(half, str(chunk), weights_dir=str(folder))
        (chunk / MODEL).chmod(0o644)  # coremltools leaves it to its owner alone
        shutil.rmtree(folder)
    shutil.rmtree(package)


def find_cut(operations: Sequence[Any], outputs: Sequence[str]) -> Cut:
    """The place near half of the weights where the fewest bytes cross. Raises ExportError where there is none."""
    constants = {o.outputs[0].name: o for o in operations if o.type == "const" or o.type.startswith("constexpr_")}
    steps = [o for o in operations if o.outputs[0].name not in constants]
    needed = [_needed(step, constants) for step in steps]
    first_use = {name: index for index in reversed(range(len(steps))) for name in needed[index]}
    added = [0] * len(steps)
    for name, index in first_use.items():
        added[index] += _stored_bytes(constants[name])
    before = [0, *accumulate(added)]
    if len(steps) < 2 or not before[-1]:
        raise ExportError(f"a program of {len(steps)} operations and {before[-1]} bytes of weights cannot be split")
    distance = {end: abs(before[end] / before[-1] - 0.5) for end in range(1, len(steps))}
    near = [end for end in distance if distance[end] <= max(SLACK, min(distance.values()))]
    end = min(near, key=lambda one: sum(map(_bytes, _crossing(steps, one, outputs).values())))
    halves = [
        [o for name, o in constants.items() if any(name in names for names in part)]
        for part in (needed[:end], needed[end:])
    ]
    return Cut(halves[0] + steps[:end], halves[1] + steps[end:], _crossing(steps, end, outputs))


def _crossing(steps: Sequence[Any], end: int, outputs: Sequence[str]) -> dict[str, Any]:
    """The values that are made before `end` and read after it, in the order in which they are made."""
    later = {name for step in steps[end:] for name in _reads(step)} | set(outputs)
    return {value.name: value for step in steps[:end] for value in step.outputs if value.name in later}


def _needed(step: Any, constants: dict[str, Any]) -> set[str]:
    """The constants of a step, and what those are unpacked from."""
    found: set[str] = set()
    waiting = [name for name in _reads(step) if name in constants]
    while waiting:
        name = waiting.pop()
        found.add(name)
        waiting += [other for other in _reads(constants[name]) if other not in found]
    return found


def _reads(operation: Any) -> Iterator[str]:
    for argument in operation.inputs.values():
        yield from (binding.name for binding in argument.arguments if binding.WhichOneof("binding") == "name")
    for block in operation.blocks:
        yield from block.outputs
        for inner in block.operations:
            yield from _reads(inner)


def _stored_bytes(operation: Any) -> int:
    """What a constant takes in the weight file."""
    values = operation.attributes.values()
    return sum(_bytes(value) for value in values if value.WhichOneof("value") == "blobFileValue")


def _bytes(value: Any) -> int:
    tensor = value.type.tensorType
    count = BYTES.get(tensor.dataType, 1)
    for dimension in tensor.dimensions:
        count *= dimension.constant.size
    return count


def _first(spec: Any, cut: Cut) -> Any:
    """The half that gives what crosses: in float32, as the halves that Apple's converter makes do."""
    model, function, block = _with_operations(spec, cut.first)
    del model.description.output[:], block.outputs[:]
    for name, value in cut.crossing.items():
        if _is_half(value):
            _add_cast(block, name, _outside(value), value, MIL_pb2.FLOAT32)
        block.outputs.append(_outside(value))
        _describe(model.description.output.add(), value)
    _keep(model, function, {name for operation in cut.first for name in _reads(operation)})
    return model


def _second(spec: Any, cut: Cut) -> Any:
    """The half that takes what crosses, beside those of the whole's inputs that it reads."""
    model, function, block = _with_operations(spec, [])
    for name, value in cut.crossing.items():
        port = function.inputs.add()
        port.CopyFrom(value)
        port.name = _outside(value)
        if _is_half(value):
            port.type.tensorType.dataType = MIL_pb2.FLOAT32
            _add_cast(block, port.name, name, value, MIL_pb2.FLOAT16)
        _describe(model.description.input.add(), value)
    block.operations.extend(cut.second)
    read = {name for operation in cut.second for name in _reads(operation)}
    _keep(model, function, read | {_outside(value) for value in cut.crossing.values()})
    return model


def _block(model: Any) -> tuple[Any, Any]:
    (function,) = model.mlProgram.functions.values()
    return function, function.block_specializations[function.opset]


def _with_operations(spec: Any, operations: list[Any]) -> tuple[Any, Any, Any]:
    model = Model_pb2.Model()
    model.CopyFrom(spec)
    function, block = _block(model)
    del block.operations[:]
    block.operations.extend(operations)
    return model, function, block


def _keep(model: Any, function: Any, names: set[str]) -> None:
    """Leave the inputs of these names."""
    for ports in (function.inputs, model.description.input):
        kept = [type(port).FromString(port.SerializeToString()) for port in ports if port.name in names]
        del ports[:]
        ports.extend(kept)


def _is_half(value: Any) -> bool:
    return bool(value.type.tensorType.dataType == MIL_pb2.FLOAT16)


def _outside(value: Any) -> str:
    """A crossing value's name between the halves."""
    return f"{value.name}_float32" if _is_half(value) else str(value.name)


def _describe(feature: Any, value: Any) -> None:
    feature.name = _outside(value)
    tensor, array = value.type.tensorType, feature.type.multiArrayType
    array.dataType = ARRAY_TYPES.get(tensor.dataType, FeatureTypes_pb2.ArrayFeatureType.FLOAT32)
    array.shape.extend(dimension.constant.size for dimension in tensor.dimensions)


def _add_cast(block: Any, source: str, result: str, like: Any, data_type: int) -> None:
    """Append a cast; its dtype is a constant, as coremltools writes it."""
    constant, cast = block.operations.add(), block.operations.add()
    constant.type, cast.type = "const", "cast"
    named, out = constant.outputs.add(), cast.outputs.add()
    named.name, out.name = f"{result}_dtype", result
    constant.attributes["val"].CopyFrom(_text("fp16" if data_type == MIL_pb2.FLOAT16 else "fp32"))
    named.type.CopyFrom(constant.attributes["val"].type)
    out.type.CopyFrom(like.type)
    out.type.tensorType.dataType = data_type
    for operation in (constant, cast):
        operation.attributes["name"].CopyFrom(_text(operation.outputs[0].name))
    cast.inputs["x"].arguments.add().name = source
    cast.inputs["dtype"].arguments.add().name = named.name


def _text(text: str) -> Any:
    value = MIL_pb2.Value()
    value.type.tensorType.dataType = MIL_pb2.STRING
    value.immediateValue.tensor.strings.values.append(text)
    return value


def package_files(package: Path) -> Iterable[Path]:
    """Every file of a package, the one at its head first."""
    head = package / "Manifest.json"
    return (head, *sorted(file for file in package.rglob("*") if file.is_file() and file != head))
