"""Reading a safetensors file with NumPy alone, lazily: tensors stay on disk, mapped, until they are asked for.

The format: 8 bytes with the header's length (little-endian), the header as JSON, then the tensors' bytes. The header says
of each tensor its dtype, its shape and from where to where it lies behind the header. Source: the safetensors README,
"Format". Nothing in such a file can run; what a header claims is held against the file's size before it is believed.
"""

from __future__ import annotations

import math
import mmap
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..errors import InputError

MOST_HEADER = 100_000_000  # bytes; safetensors' own bound
# bfloat16, which NumPy has not, is read as integers: it is the upper half of a float32
DTYPES: dict[str, np.dtype[Any]] = {
    name: np.dtype(kind)
    for name, kind in (("F64", "<f8"), ("F32", "<f4"), ("F16", "<f2"), ("BF16", "<u2"), ("I64", "<i8"), ("I32", "<i4"))
}
PICKLED = (".ckpt", ".pt", ".pth", ".bin", ".pkl")

Natural = Annotated[int, msgspec.Meta(ge=0)]


class Entry(msgspec.Struct, frozen=True):
    """What the header says of a tensor."""

    dtype: str
    shape: tuple[Natural, ...]
    data_offsets: tuple[Natural, Natural]


class SafeTensors:
    """An open file: `entries` by name, `metadata` as its writer left it."""

    def __init__(self, file: Path, entries: dict[str, Entry], metadata: dict[str, str], data: memoryview) -> None:
        self.file = file
        self.entries = entries
        self.metadata = metadata
        self._data = data

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, without reading it."""
        return self.entries[name].shape

    def read(self, name: str) -> NDArray[np.float32]:
        """A tensor as float32, a copy. Raises InputError for a dtype that is none of `DTYPES`."""
        entry = self.entries[name]
        if entry.dtype not in DTYPES:
            raise InputError(f"{self.file}: {name} is {entry.dtype}; Ingot reads {', '.join(DTYPES)}: save it as F16")
        first, last = entry.data_offsets
        flat = np.frombuffer(self._data[first:last], DTYPES[entry.dtype])
        if entry.dtype == "BF16":
            flat = (flat.astype(np.uint32) << 16).view(np.float32)
        return flat.astype(np.float32).reshape(entry.shape)


def open_safetensors(file: Path) -> SafeTensors:
    """Open a file and check its header. Raises InputError for one that is not there or no whole safetensors file."""
    try:
        with file.open("rb") as opened:
            whole = memoryview(mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ))
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror or error}") from error
    except ValueError as error:  # what mmap says of an empty file
        raise _broken(file, "it is empty") from error
    length = int.from_bytes(whole[:8], "little")
    if len(whole) < 8 or length > min(MOST_HEADER, len(whole) - 8):
        raise _broken(file, f"its header would be {length:,} bytes long")
    try:
        header = msgspec.json.decode(whole[8 : 8 + length], type=dict[str, msgspec.Raw])
        metadata = msgspec.json.decode(header.pop("__metadata__", b"{}"), type=dict[str, str])
        entries = {name: msgspec.json.decode(raw, type=Entry) for name, raw in header.items()}
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _broken(file, f"its header cannot be read: {error}") from error
    data = whole[8 + length :]
    for name, entry in entries.items():
        _check(file, name, entry, len(data))
    return SafeTensors(file, entries, metadata, data)


def _check(file: Path, name: str, entry: Entry, size: int) -> None:
    first, last = entry.data_offsets
    if not first <= last <= size:
        raise _broken(file, f"{name} would lie from byte {first:,} to {last:,} of {size:,}")
    wanted = math.prod(entry.shape) * DTYPES[entry.dtype].itemsize if entry.dtype in DTYPES else last - first
    if last - first != wanted:
        raise _broken(file, f"{name} has {last - first:,} bytes, and its shape {list(entry.shape)} needs {wanted:,}")
    if any(side > size for side in entry.shape):
        raise _broken(file, f"{name} has the shape {list(entry.shape)}")


def _broken(file: Path, why: str) -> InputError:
    hint = (
        "; pickled weights can run any code when they are read: convert them to safetensors"
        if file.suffix in PICKLED
        else ""
    )
    return InputError(f"{file} is not a whole safetensors file: {why}{hint}")
