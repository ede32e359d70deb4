"""A new weight file for a Core ML package: what stays, copied as it is, and what was compressed.

The format is exporters/coreml_blobs.py's. Of integers that do not fill bytes, a blob's record has the unused bits of the
last byte too, behind its place.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from ingot.exporters.coreml_blobs import FILE_HEADER, SENTINEL, STEP, VERSION
from ingot.exporters.mil.blobs import BLOB_TYPES, RECORD
from ingot.exporters.mil.graph import STORAGE
from ingot.runtimes.engines._coreml_import import ct
from ingot.runtimes.errors import ExportError

from ._coreml_numbers import pack

MIL_pb2 = ct.proto.MIL_pb2
FILE_NAME = "@model_path/weights/weight.bin"
IN_PROGRAM = 10  # values fewer than these stand in the program itself, as coremltools writes them
BLOB_RECORD = struct.Struct("<IIQQQ")  # sentinel, type, bytes, place, unused bits
NUMBERS = {name: number for number, name in BLOB_TYPES.items()}
NAMES = {
    "float16": "FLOAT16",
    "float32": "FLOAT32",
    "int8": "INT8",
    "uint8": "UINT8",
    "int32": "INT32",
    "uint32": "UINT32",
}
FIELDS = {"FLOAT32": "floats", "INT32": "ints"}  # others stand in a program as bytes
AT_ONCE = 1 << 24


class WeightWriter:
    """Writes a weight file from start to end; used as a context."""

    def __init__(self, path: Path, source: Path) -> None:
        self._path, self._source = path, source
        self._placed: dict[int, int] = {}
        self._count = 0

    def __enter__(self) -> Self:
        self._file: BinaryIO = self._path.open("wb")
        self._old = self._source.open("rb") if self._source.exists() else None
        self._file.write(bytes(STEP))
        return self

    def __exit__(self, *_: object) -> None:
        self._file.seek(0)
        self._file.write(FILE_HEADER.pack(self._count, VERSION))
        self._file.close()
        if self._old:
            self._old.close()

    def value(self, array: NDArray[Any], kind: str = "") -> Any:
        """A MIL value of this array; `kind` names a type that NumPy has not, such as INT4. Short ones are in it."""
        kind = kind or NAMES[array.dtype.name]
        if array.size < IN_PROGRAM or kind in ("INT32", "UINT32"):  # iOS 17 and before have no blobs of these
            return immediate(array, kind)
        content = _content(array, kind)
        value = typed_value(kind, array.shape)
        value.blobFileValue.fileName = FILE_NAME
        value.blobFileValue.offset = self._record(NUMBERS[kind], content.nbytes, -array.size * STORAGE[kind].bits % 8)
        self._file.write(content.data)
        return value

    def copy(self, value: Any) -> None:
        """Copy the blob of a MIL value, once however many refer to it, and let the value refer to the copy.

        Raises ExportError where the old file holds no blob there.
        """
        offset = value.blobFileValue.offset
        if offset not in self._placed:
            self._placed[offset] = self._copied(offset)
        value.blobFileValue.offset = self._placed[offset]

    def _copied(self, offset: int) -> int:
        assert self._old is not None, "a program with blobs and no weight file"
        self._old.seek(offset)
        record = self._old.read(RECORD.itemsize + 8)
        if len(record) < BLOB_RECORD.size or BLOB_RECORD.unpack(record)[0] != SENTINEL:
            raise ExportError(f"{self._source} holds no weight at {offset}: it was cut short or is not of this program")
        _, kind, size, place, unused = BLOB_RECORD.unpack(record)
        start = self._record(kind, size, unused)
        self._old.seek(place)
        while size:
            part = self._old.read(min(size, AT_ONCE))
            if not part:
                raise ExportError(f"{self._source} ends before its last weight does")
            self._file.write(part)
            size -= len(part)
        return start

    def _record(self, kind: int, size: int, unused: int) -> int:
        self._file.write(bytes(-self._file.tell() % STEP))
        start = self._file.tell()
        self._file.write(BLOB_RECORD.pack(SENTINEL, kind, size, start + STEP, unused).ljust(STEP, b"\0"))
        self._count += 1
        return start


def typed_value(kind: str, shape: Sequence[int]) -> Any:
    """A MIL value of a type and shape, empty yet."""
    value = MIL_pb2.Value()
    tensor = value.type.tensorType
    tensor.dataType = MIL_pb2.DataType.Value(kind)
    tensor.rank = len(shape)
    for size in shape:
        tensor.dimensions.add().constant.size = size
    return value


def text(words: str) -> Any:
    """A MIL value of a string."""
    value = typed_value("STRING", ())
    value.immediateValue.tensor.strings.values.append(words)
    return value


def immediate(array: NDArray[Any], kind: str = "") -> Any:
    """A MIL value that stands in the program itself."""
    kind = kind or NAMES[array.dtype.name]
    value = typed_value(kind, array.shape)
    tensor = value.immediateValue.tensor
    if kind in FIELDS:
        getattr(tensor, FIELDS[kind]).values.extend(array.ravel().tolist())
    else:
        tensor.bytes.values = _content(array, kind).tobytes()
    return value


def _content(array: NDArray[Any], kind: str) -> NDArray[Any]:
    return pack(array, STORAGE[kind].bits) if STORAGE[kind].packed else np.ascontiguousarray(array)
