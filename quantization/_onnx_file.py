"""An ONNX file opened without its weights: each is a reference to where its bytes lie, beside the graph or inside it.

Protobuf has no way to read a message in part, so a graph with its weights inside is in memory twice while it is parsed.
Here the weights' bytes (ModelProto.graph = 7, GraphProto.initializer = 5, TensorProto.raw_data = 9, by onnx.proto) are
left out of what is parsed. https://protobuf.dev/programming-guides/encoding/ has the encoding.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

import onnx
import onnx_ir as ir

GRAPH, INITIALIZER, RAW_DATA = 7, 5, 9
VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5
# Smaller ones stay inside: shapes and scalars, which are looked at.
SMALL_BYTES = 1024
Field = tuple[int, int, int, int]  # its number, where it begins, where what it holds begins, where it ends
Place = tuple[int, int]  # offset and length in the file


def load(path: Path) -> ir.Model:
    """A graph whose large weights are references, by absolute paths: onnx_ir reads no relative one that has several hard
    links."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        skeleton, places = _model(data)
    model: ir.Model = ir.from_proto(onnx.ModelProto.FromString(skeleton))
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor):
            where = (path.parent / tensor.location).absolute(), tensor.offset, tensor.length
        elif value.name in places and tensor is not None:
            where = path.absolute(), *places[value.name]
        else:
            continue
        value.const_value = ir.ExternalTensor(
            str(where[0]), *where[1:], tensor.dtype, shape=ir.Shape(tensor.shape.numpy()), name=value.name or "",
            metadata_props=dict(tensor.metadata_props),
        )  # fmt: skip
    return model


def beside(path: Path, model: ir.Model) -> bool:
    """Whether a graph that was opened here has weights in another file."""
    return any(
        isinstance(value.const_value, ir.ExternalTensor) and Path(value.const_value.location) != path.absolute()
        for value in model.graph.initializers.values()
    )


def _model(data: mmap.mmap) -> tuple[bytes, dict[str, Place]]:
    """The file without its large weights, and where these are by name."""
    places: dict[str, Place] = {}
    parts = [
        _wrapped(GRAPH, _graph(data, start, end, places)) if number == GRAPH else data[begin:end]
        for number, begin, start, end in _fields(data, 0, len(data))
    ]
    return b"".join(parts), places


def _graph(data: mmap.mmap, start: int, end: int, places: dict[str, Place]) -> bytes:
    parts = []
    for number, begin, inside, after in _fields(data, start, end):
        if number == INITIALIZER and after - inside > SMALL_BYTES:
            parts.append(_wrapped(INITIALIZER, _tensor(data, inside, after, places)))
        else:
            parts.append(data[begin:after])
    return b"".join(parts)


def _tensor(data: mmap.mmap, start: int, end: int, places: dict[str, Place]) -> bytes:
    fields = list(_fields(data, start, end))
    raw = [(inside, after - inside) for number, _, inside, after in fields if number == RAW_DATA]
    if len(raw) != 1 or raw[0][1] < SMALL_BYTES:
        return data[start:end]
    rest = b"".join(data[begin:after] for number, begin, _, after in fields if number != RAW_DATA)
    places[onnx.TensorProto.FromString(rest).name] = raw[0]
    return rest


def _fields(data: mmap.mmap, start: int, end: int) -> Iterator[Field]:
    """The fields of a message between two places of the file."""
    at = start
    while at < end:
        begin = at
        key, at = _varint(data, at)
        kind, inside = key & 7, at
        if kind == VARINT:
            _, at = _varint(data, at)
        elif kind == LENGTH:
            length, inside = _varint(data, at)
            at = inside + length
        elif kind in (FIXED64, FIXED32):
            at += 8 if kind == FIXED64 else 4
        else:
            raise ValueError(f"wire type {kind} at byte {begin} is none of ONNX's")
        if at > end:
            raise ValueError(f"the field at byte {begin} reaches beyond its message")
        yield key >> 3, begin, inside, at


def _varint(data: mmap.mmap, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = data[at]
        at, number, shift = at + 1, number | (byte & 127) << shift, shift + 7
        if byte < 128:
            return number, at


def _wrapped(number: int, content: bytes) -> bytes:
    return _encoded(number << 3 | LENGTH) + _encoded(len(content)) + content


def _encoded(number: int) -> bytes:
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    found.append(number)
    return bytes(found)
