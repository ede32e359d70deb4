"""The weights of an ONNX file, found without the package onnx, and a session over the file with some of them exchanged.

How weights can be exchanged, as measured with ONNX Runtime 1.31.1. `SessionOptions.add_initializer` takes effect after the
graph was optimized, when convolutions hold reordered copies of the old weights: wrong answers without a word.
`add_external_initializers` takes effect before that, on weights that lie beside the graph, and refuses those inside; these
are written over in a copy of the graph's bytes.

Protocol buffers, as far as needed: a message is a row of fields, each a number with its kind (a varint) and a value, which
is a varint, 8 or 4 bytes, or a length with so many bytes. Source: the protobuf encoding guide; the numbers are onnx.proto's.
"""

from __future__ import annotations

import mmap
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from ..errors import EngineError
from ._weights import Change, changed_weight

FLOATS: dict[int, np.dtype[Any]] = {1: np.dtype("<f4"), 10: np.dtype("<f2")}  # TensorProto.DataType
TRANSPOSED = "ingot.transposed"  # what exporters.onnx_graph notes on a weight with rows and columns exchanged
FOLDER = "session.model_external_initializers_file_folder_path"
# fields of ModelProto, GraphProto, TensorProto and StringStringEntryProto
GRAPH, INITIALIZER = 7, 5
DIMS, DATA_TYPE, NAME, RAW, EXTERNAL, METADATA = 1, 2, 8, 9, 13, 16
KEY, VALUE = 1, 2


@dataclass(frozen=True)
class Stored:
    """A float weight of a graph: in which file and from where on, and how it lies there."""

    name: str
    dtype: np.dtype[Any]
    dims: tuple[int, ...]
    transposed: bool
    file: Path
    offset: int
    inside: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape that the checkpoint has it in."""
        return self.dims[::-1] if self.transposed else self.dims

    @property
    def parameter(self) -> str:
        """Its name in the checkpoint. A weight that is used both ways lies in the graph twice."""
        return self.name.removesuffix(f".{TRANSPOSED}")

    def after(self, change: Change) -> NDArray[Any]:
        """What the graph holds when the weight is changed, laid out as it is there."""
        count = int(np.prod(self.dims))
        with self.file.open("rb") as file:
            file.seek(self.offset)
            held = np.fromfile(file, self.dtype, count)
        if len(held) < count:
            raise EngineError(f"{self.file} ends within {self.name}: `ingot verify` compares it with its bundle")
        held = held.reshape(self.dims)
        found = changed_weight(change, held.T if self.transposed else held)
        return np.ascontiguousarray(found.T if self.transposed else found)


def stored_weights(file: Path) -> dict[str, list[Stored]]:
    """The float weights of an ONNX file by the checkpoint's names. Raises EngineError for what is no such file."""
    found: dict[str, list[Stored]] = defaultdict(list)
    try:
        with file.open("rb") as opened:
            data = memoryview(mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ))
        for graph in _messages(data, 0, len(data), GRAPH):
            for place in _messages(data, *graph, INITIALIZER):
                weight = _weight(file, data, *place)
                if weight is not None:
                    found[weight.parameter].append(weight)
    except (OSError, ValueError, IndexError, UnicodeDecodeError, KeyError) as error:
        raise EngineError(f"the weights of {file} cannot be found: {error}") from error
    return found


def exchange(
    file: Path, changes: Mapping[str, Change], options: ort.SessionOptions
) -> tuple[str | bytes, list[ort.OrtValue]]:
    """What to open for the graph with these weights changed, and what must live as long as the session does.

    The options are told of weights beside the graph.
    """
    names, values, inside = [], [], []
    stored = stored_weights(file)
    for parameter, change in changes.items():
        for weight in stored[parameter]:
            array = weight.after(change)
            if weight.inside:
                inside.append((weight.offset, array))
            else:
                names.append(weight.name)
                values.append(ort.OrtValue.ortvalue_from_numpy(array))
    if names:
        options.add_external_initializers(names, values)
    if not inside:
        return str(file), values
    whole = bytearray(file.read_bytes())
    for offset, array in inside:
        whole[offset : offset + array.nbytes] = array.tobytes()
    options.add_session_config_entry(FOLDER, str(file.parent.absolute()))  # bytes have no folder of their own
    return bytes(whole), values


def _weight(file: Path, data: memoryview, begin: int, end: int) -> Stored | None:
    """The weight of a TensorProto; None for integers, and for values that are not kept as plain bytes."""
    dims: list[int] = []
    name, kind, raw = "", 0, None
    beside: dict[str, str] = {}
    notes: dict[str, str] = {}
    for number, first, last in _fields(data, begin, end):
        if number == DIMS:
            dims += _numbers(data, first, last)
        elif number == DATA_TYPE:
            kind = first
        elif number == NAME:
            name = _text(data, first, last)
        elif number == RAW:
            raw = first
        elif number in (EXTERNAL, METADATA):
            entry = {n: _text(data, a, b) for n, a, b in _fields(data, first, last)}
            (beside if number == EXTERNAL else notes)[entry.get(KEY, "")] = entry.get(VALUE, "")
    if kind not in FLOATS or (raw is None and not beside):
        return None
    transposed = notes.get(TRANSPOSED) == "1" and len(dims) == 2
    if not beside:
        return Stored(name, FLOATS[kind], tuple(dims), transposed, file, raw or 0, True)
    location = beside["location"]
    if Path(location).name != location:
        raise ValueError(f"{name} lies in {location!r}, outside of the graph's folder")
    place = file.with_name(location)
    return Stored(name, FLOATS[kind], tuple(dims), transposed, place, int(beside.get("offset", 0)), False)


def _messages(data: memoryview, begin: int, end: int, wanted: int) -> Iterator[tuple[int, int]]:
    return ((first, last) for number, first, last in _fields(data, begin, end) if number == wanted)


def _fields(data: memoryview, begin: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Every field of a message: its number, and from where to where its bytes lie; of a varint the value, twice."""
    while begin < end:
        key, begin = _varint(data, begin)
        match key & 7:
            case 0:
                value, begin = _varint(data, begin)
                yield key >> 3, value, value
                continue
            case 1:
                size = 8
            case 2:
                size, begin = _varint(data, begin)
            case 5:
                size = 4
            case kind:
                raise ValueError(f"a field of kind {kind}")
        if begin + size > end:
            raise ValueError("a field that is longer than what holds it")
        yield key >> 3, begin, begin + size
        begin += size


def _varint(data: memoryview, begin: int) -> tuple[int, int]:
    """A number of 7 bits to a byte, the lowest first, and where it ends."""
    value = shift = 0
    while True:
        byte = data[begin]
        value |= (byte & 0x7F) << shift
        begin, shift = begin + 1, shift + 7
        if byte < 0x80:
            return value, begin
        if shift > 63:
            raise ValueError("a number of more than 64 bits")


def _numbers(data: memoryview, first: int, last: int) -> list[int]:
    """A repeated number's values: packed in one field, or one to a field."""
    if first == last:
        return [first]
    found = []
    while first < last:
        value, first = _varint(data, first)
        found.append(value)
    return found


def _text(data: memoryview, first: int, last: int) -> str:
    return str(data[first:last], "utf-8")
