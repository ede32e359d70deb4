"""Values of a Core ML package from its bytes: the weight file and the packed form of small integers.

A weight file (MIL blob storage, version 2) begins with 64 bytes: the number of blobs and the version, both uint32. A blob
is named by the offset of its record of 64 bytes: uint32 0xDEADBEEF, uint32 type, uint64 bytes, uint64 offset of the data.
Found by reading what coremltools 9's own writer writes; tests/test_mil.py does that for every type.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ingot.runtimes.errors import ExportError

from .graph import STORAGE, TensorType

VERSION = 2
SENTINEL = 0xDEADBEEF
RECORD = np.dtype([("sentinel", "<u4"), ("type", "<u4"), ("bytes", "<u8"), ("offset", "<u8")])
BLOB_TYPES = {
    1: "FLOAT16", 2: "FLOAT32", 3: "UINT8", 4: "INT8", 6: "INT16", 7: "UINT16", 8: "INT4", 9: "UINT1", 10: "UINT2",
    11: "UINT4", 12: "UINT3", 13: "UINT6", 14: "INT32", 15: "UINT32",
}  # fmt: skip


class WeightFile:
    """The weights of a package, mapped: what is read comes from the disk each time, and the system may drop it again."""

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise ExportError(f"the package names the weight file {path}, which does not exist")
        self.path = path
        self.content = np.memmap(path, np.uint8, mode="r") if path.stat().st_size else np.zeros(0, np.uint8)
        version = int.from_bytes(self.content[4:8].tobytes(), "little")
        if version != VERSION:
            raise ExportError(f"{path} is weight storage of version {version}; version {VERSION} can be read")

    def read(self, offset: int, kind: TensorType) -> Tensor:
        """The tensor whose record lies at this offset.

        Raises ExportError when no record lies there, or it holds another type or size than the program says.
        """
        (record,) = self._bytes(offset, RECORD.itemsize).view(RECORD)
        found = BLOB_TYPES.get(int(record["type"]), f"type {record['type']}")
        if record["sentinel"] != SENTINEL or found != kind.dtype:
            what = found if record["sentinel"] == SENTINEL else "no blob"
            raise ExportError(f"{self.path} holds {what} at {offset}, where the program expects {kind}")
        size = stored_bytes(kind)
        if record["bytes"] != size:
            raise ExportError(f"{self.path} holds {record['bytes']} bytes at {offset}; {kind} takes {size}")
        return decode(self._bytes(int(record["offset"]), size), kind)

    def _bytes(self, start: int, length: int) -> NDArray[np.uint8]:
        found: NDArray[np.uint8] = np.array(self.content[start : start + length])
        if len(found) < length:
            raise ExportError(f"{self.path} ends at {len(self.content)}, before {start + length}: it was cut short")
        return found


def stored_bytes(kind: TensorType) -> int:
    """What a value of this type takes on disk."""
    count = int(np.prod(_sizes(kind), dtype=np.int64))
    return -(-count * STORAGE[kind.dtype].bits // 8)


def decode(content: NDArray[np.uint8], kind: TensorType) -> Tensor:
    """The tensor of these bytes, in the type that it is computed in."""
    storage, shape = STORAGE[kind.dtype], _sizes(kind)
    count = int(np.prod(shape, dtype=np.int64))
    values: NDArray[Any] = content.view(storage.on_disk) if not storage.packed else unpack(content, count, storage.bits)
    if storage.packed and storage.on_disk == np.int8:
        values = ((values ^ (1 << storage.bits - 1)).astype(np.int16) - (1 << storage.bits - 1)).astype(np.int8)
    return to_tensor(values.reshape(shape), kind.dtype)


def unpack(content: NDArray[np.uint8], count: int, bits: int) -> NDArray[np.uint8]:
    """Unsigned integers of fewer than 8 bits, which lie one after the other from the lowest bit up, across bytes."""
    single = np.unpackbits(content, bitorder="little", count=count * bits).reshape(count, bits)
    values = np.zeros(count, np.uint8)
    for position in range(bits):
        values |= single[:, position] << position
    return values


def to_tensor(array: NDArray[Any], dtype: str) -> Tensor:
    """An array as the evaluator computes with it."""
    widened = array.astype(np.int64) if array.dtype in (np.uint16, np.uint32) else array
    return torch.from_numpy(np.ascontiguousarray(widened)).reshape(array.shape).to(STORAGE[dtype].computed)


def _sizes(kind: TensorType) -> tuple[int, ...]:
    if None in kind.shape:
        raise ExportError(f"a constant is declared as {kind}, without its sizes")
    return tuple(size for size in kind.shape if size is not None)
