"""Weights without copies and without pickle: the records of a `.pt2` archive, and of a safetensors file, as mapped tensors.

A `.pt2` file (torch.export's archive) is a zip whose members are stored as they are; `data/weights/weight_N` are the raw
bytes of a tensor, and a JSON file says which name has which dtype, shape and strides in which member. torch's own loader
also unpickles members that claim to need it, and evaluates strings as expressions: torch 2.13 says "never load data from
an untrusted source". Nothing of that is done here.
"""

from __future__ import annotations

import json
import mmap
import re
import struct
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import EngineError

# torch/_export/serde/schema.py numbers dtypes so; 8 (float64) and the half and 8-bit kinds included
DTYPES = {
    1: torch.uint8, 2: torch.int8, 3: torch.int16, 4: torch.int32, 5: torch.int64, 6: torch.float16, 7: torch.float32,
    8: torch.float64, 12: torch.bool, 13: torch.bfloat16, 29: torch.float8_e4m3fn, 30: torch.float8_e5m2,
}  # fmt: skip
SAFETENSORS_DTYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "I32": torch.int32, "I64": torch.int64,
    "F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64,
}  # fmt: skip
# What torch.export.save writes for a program of tensors. Pickled members (`custom_obj_`, `opaque_obj_`, `model.pt`) and
# compiled code (`data/aotinductor`) are not among them.
MEMBERS = re.compile(
    r"data/weights/weight_\d+|data/constants/tensor_\d+|data/(weights|constants)/model_(weights|constants)_config\.json"
    r"|models/model\.json|data/sample_inputs/model\.pt|archive_format|archive_version|byteorder|\.data/(version|serialization_id)"
)
LOCAL_HEADER = struct.Struct("<4s5H3I2H")  # APPNOTE.TXT 4.3.7: the last two are the lengths of name and extra field


class Archive:
    """A `.pt2` archive, mapped into memory: pages are read when they are used, and shared by all who map the file."""

    def __init__(self, file: Path) -> None:
        self.file = file
        try:
            with zipfile.ZipFile(file) as opened:
                members = opened.infolist()
        except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile) as error:
            raise EngineError(f"{file} is not a .pt2 archive: {error}") from error
        self._members = {info.filename.partition("/")[2]: info for info in members}
        strange = sorted(name for name in self._members if not MEMBERS.fullmatch(name))
        packed = [info.filename for info in members if info.compress_type != zipfile.ZIP_STORED]
        if strange or packed or len(self._members) != len(members):
            raise EngineError(
                f"{file} holds more than a program and its tensors: {', '.join((strange or packed)[:3])}; "
                "such an archive could run code of its own and is not opened"
            )
        self._map = _mapped(file)

    def members(self) -> list[str]:
        """The names of its members, in their order."""
        return list(self._members)

    def content(self, name: str) -> memoryview:
        """The bytes of a member, where the file is mapped."""
        return self._bytes(name)

    def json(self, name: str) -> Any:
        """A JSON member."""
        try:
            return json.loads(bytes(self._bytes(name)))
        except (ValueError, RecursionError) as error:
            raise EngineError(f"{self.file}: {name} cannot be read: {error}") from error

    def tensors(self) -> dict[str, Tensor]:
        """Every weight and constant by its name. Raises EngineError for one that is pickled or does not fit its bytes."""
        found: dict[str, Tensor] = {}
        for kind in ("weights", "constants"):
            for name, entry in self.json(f"data/{kind}/model_{kind}_config.json")["config"].items():
                if entry["use_pickle"]:
                    raise EngineError(f"{self.file}: {name} is pickled; only plain tensors are opened")
                found[name] = self._tensor(f"data/{kind}/{entry['path_name']}", name, entry["tensor_meta"])
        return found

    def _tensor(self, member: str, name: str, meta: Mapping[str, Any]) -> Tensor:
        dtype = DTYPES.get(meta["dtype"])
        if dtype is None:
            raise EngineError(f"{self.file}: {name} has a dtype that Ingot does not know (number {meta['dtype']})")
        shape, strides = _ints(meta["sizes"]), _ints(meta["strides"])
        return _view(self.file, name, self._bytes(member), dtype, shape, strides, _ints([meta["storage_offset"]])[0])

    def _bytes(self, name: str) -> memoryview:
        if name not in self._members:
            raise EngineError(f"{self.file} is not a whole .pt2 archive: {name} is missing")
        info = self._members[name]
        try:
            header = LOCAL_HEADER.unpack_from(self._map, info.header_offset)
        except struct.error as error:
            raise EngineError(f"{self.file} is not a whole .pt2 archive: {name} lies past its end") from error
        start = info.header_offset + LOCAL_HEADER.size + header[-2] + header[-1]
        return self._map[start : start + info.file_size]


def read_safetensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, mapped."""
    whole = _mapped(file)
    try:
        (length,) = struct.unpack_from("<Q", whole)
        header = json.loads(bytes(whole[8 : 8 + length]))
        header.pop("__metadata__", None)
        found = {}
        for name, entry in header.items():
            first, last = (8 + length + offset for offset in entry["data_offsets"])
            found[name] = _view(
                file, name, whole[first:last], SAFETENSORS_DTYPES[entry["dtype"]], entry["shape"], None, 0
            )
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise EngineError(f"{file} is not a safetensors file: {error}") from error
    return found


def _mapped(file: Path) -> memoryview:
    """The file in memory, private to this process: torch wants memory that it may write to, and the file stays."""
    try:
        with file.open("rb") as opened:
            return memoryview(mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY))
    except (OSError, ValueError) as error:
        raise EngineError(f"{file} cannot be read: {error}") from error


def _view(
    file: Path,
    name: str,
    data: memoryview,
    dtype: torch.dtype,
    shape: list[int],
    strides: list[int] | None,
    offset: int,
) -> Tensor:
    if not len(data) and 0 in shape:
        return torch.zeros(shape, dtype=dtype)
    try:
        flat = torch.frombuffer(data, dtype=dtype)
        return flat.view(shape) if strides is None else flat.as_strided(shape, strides, offset)
    except (RuntimeError, ValueError) as error:
        raise EngineError(f"{file}: {name} of shape {shape} does not fit its {len(data)} bytes: {error}") from error


def _ints(values: Iterable[Mapping[str, Any]]) -> list[int]:
    return [value["as_int"] for value in values]
