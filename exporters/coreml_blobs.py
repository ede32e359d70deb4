"""The weight file of an ML program: those blobs that a part of the program uses, copied to a file of its own.

Format (MIL Blob Storage, version 2, as coremltools' `MILBlob` writes it; checked against its reader in the tests): a header
of 64 bytes that begins with the number of blobs and the version; then for each blob a header of 64 bytes (sentinel, type,
bytes, place of its bytes) and its bytes, everything on a multiple of 64.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from ingot.runtimes.errors import ExportError

STEP = 64
FILE_HEADER = struct.Struct("<II")  # blobs, version
BLOB_HEADER = struct.Struct("<IIQQ")  # sentinel, type, bytes, place
SENTINEL, VERSION = 0xDEADBEEF, 2


def copy_blobs(block: Any, source: Path, target: Path) -> None:
    """Copy what a block's constants refer to from one weight file to another, and let them refer to that.

    A blob that several constants share is copied once. Raises ExportError for a file of another format.
    """
    values = list(_references(block))
    if not values:
        return
    placed: dict[int, int] = {}
    with source.open("rb") as old, target.open("wb") as new:
        _require(FILE_HEADER.unpack(old.read(FILE_HEADER.size))[1] == VERSION, source)
        new.write(bytes(STEP))
        for value in values:
            offset = value.blobFileValue.offset
            if offset not in placed:
                placed[offset] = _copy_blob(old, offset, new, source)
            value.blobFileValue.offset = placed[offset]
        new.seek(0)
        new.write(FILE_HEADER.pack(len(placed), VERSION))


def _copy_blob(old: BinaryIO, offset: int, new: BinaryIO, source: Path) -> int:
    old.seek(offset)
    header = old.read(STEP)
    sentinel, kind, size, place = BLOB_HEADER.unpack_from(header)
    _require(sentinel == SENTINEL, source)
    start = new.tell()
    new.write(BLOB_HEADER.pack(sentinel, kind, size, start + STEP) + header[BLOB_HEADER.size :])
    old.seek(place)
    _copy_bytes(old, new, size)
    new.write(bytes(-new.tell() % STEP))
    return start


def _copy_bytes(old: BinaryIO, new: BinaryIO, size: int, at_once: int = 1 << 24) -> None:
    while size:
        part = old.read(min(size, at_once))
        if not part:
            raise ExportError("a weight file ends before its last blob does")
        new.write(part)
        size -= len(part)


def _references(block: Any) -> Iterator[Any]:
    """Every value of a block that lies in the weight file."""
    for operation in block.operations:
        given = [binding.value for argument in operation.inputs.values() for binding in argument.arguments]
        for value in (*operation.attributes.values(), *given):
            if value.WhichOneof("value") == "blobFileValue":
                yield value
        for inner in operation.blocks:
            yield from _references(inner)


def _require(fits: bool, file: Path) -> None:
    if not fits:
        raise ExportError(f"{file} is not a weight file of the version that Ingot can split")
