"""Where a graph's weights lie: inside it, beside it, or in one file for several graphs.

Sharing, as measured with ONNX Runtime 1.31.1: it refuses a location that leaves the model's folder ("External data path
escapes model directory"), `../` and symbolic links alike, whether the model is opened by path or from bytes. It does take
a file of the model's own folder that another graph of that folder uses too, and a hard link. So shared tensors go to one
file, which every folder with a graph that needs it holds a hard link to. No engine has to do anything, and optimum and
OpenVINO open such graphs as they open any. Where the file system has no hard links the file is copied.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

Progress = Callable[[str, float], None]
"""Told a stage by name and how much of it is done, 0 to 1."""

# Protobuf ends at 2 GB; the graph itself and its copy while it is written want room below that.
EXTERNAL_BYTES = 1_500_000_000
SHARED_FILE = "shared.onnx_data"
# Scalars and shapes stay in the graph, where shape inference and TensorRT look for them.
SMALL_BYTES = 1024
SHARE_BYTES = 4096
# Windows maps files at multiples of 64 KiB, Linux at 4 KiB: aligned, a runtime can map a weight in place of reading it.
ALIGNMENT, ALIGNED_FROM = 65536, 1 << 20


@dataclass(frozen=True)
class Shared:
    """What was moved: the files that hold it, one to a folder and all of them one on disk, and the bytes that it saves."""

    files: tuple[Path, ...]
    tensors: int
    saved_bytes: int


def save(
    model: ir.Model, path: Path, *, external_bytes: int = EXTERNAL_BYTES, progress: Progress | None = None
) -> tuple[Path, ...]:
    """Write the model, with its weights in `<name>_data` where they come to more than `external_bytes`.

    Tensors go from where they are straight to the file, one at a time. Returns the files written beside `path`. The model
    is used up: its tensors are references to the file afterwards.
    """
    values = [v for v in model.graph.initializers.values() if v.const_value is not None]
    large = [v for v in values if v.const_value.nbytes >= SMALL_BYTES]
    if sum(v.const_value.nbytes for v in large) <= external_bytes:
        ir.save(model, path)
        return ()
    data = path.with_name(path.name + "_data")
    _move(large, data, progress)
    ir.save(model, path)
    return (data,)


def share_weights(graphs: Sequence[Path]) -> Shared:
    """Store what several of these ONNX files hold alike once, in `shared.onnx_data`, and rewrite them in place.

    Only tensors of at least 4 KiB with equal type, shape and bytes. Weights that are not shared stay where they were, inside
    or beside the graph. Nothing is changed when nothing is shared.
    """
    models = {path: ir.load(path) for path in graphs}
    holders: dict[bytes, list[ir.Value]] = defaultdict(list)
    users: dict[bytes, set[Path]] = defaultdict(set)
    for path, model in models.items():
        for value in model.graph.initializers.values():
            if value.const_value is not None and value.const_value.nbytes >= SHARE_BYTES:
                key = _digest(value.const_value)
                holders[key].append(value)
                users[key].add(path)
    shared = [key for key, paths in users.items() if len(paths) > 1]
    if not shared:
        return Shared((), 0, 0)
    touched = sorted(set().union(*(users[key] for key in shared)))
    files = _write_shared([holders[key] for key in shared], touched)
    for path in touched:
        _rewrite(models[path], path)
    saved = sum(holders[key][0].const_value.nbytes * (len(users[key]) - 1) for key in shared)
    return Shared(files, len(shared), saved)


def _digest(tensor: ir.TensorProtocol) -> bytes:
    return hashlib.sha256(f"{tensor.dtype} {tensor.shape}".encode() + b"\0" + tensor.tobytes()).digest()


def _write_shared(groups: list[list[ir.Value]], graphs: list[Path]) -> tuple[Path, ...]:
    folders = sorted({path.parent for path in graphs})
    first = folders[0] / SHARED_FILE
    _move([group[0] for group in groups], first, None)
    for group in groups:
        for value in group[1:]:
            value.const_value = _located(group[0].const_value, value)
    for folder in folders[1:]:
        _link(first, folder / SHARED_FILE)
    return tuple(folder / SHARED_FILE for folder in folders)


def _link(source: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _rewrite(model: ir.Model, path: Path) -> None:
    """Write the graph anew, its own external weights in a new file without the ones that were shared."""
    own = path.with_name(path.name + "_data")
    kept = [v for v in model.graph.initializers.values() if _location(v) == own.name]
    if kept:
        fresh = own.with_name(own.name + ".new")
        _move(kept, fresh, None, name=own.name)
        fresh.replace(own)
    else:
        own.unlink(missing_ok=True)
    ir.save(model, path)


def _location(value: ir.Value) -> str | None:
    tensor = value.const_value
    return str(tensor.location) if isinstance(tensor, ir.ExternalTensor) else None


def _move(values: Sequence[ir.Value], data: Path, progress: Progress | None, *, name: str | None = None) -> None:
    """Write the values' tensors to a file, one at a time, and leave them as references to it (under `name`)."""
    total = sum(value.const_value.nbytes for value in values) or 1
    done = 0
    with data.open("wb") as file:
        for value in values:
            tensor = value.const_value
            if tensor.nbytes >= ALIGNED_FROM:
                file.write(bytes(-file.tell() % ALIGNMENT))
            offset = file.tell()
            tensor.tofile(file)
            reference = ir.ExternalTensor(
                name or data.name,
                offset,
                tensor.nbytes,
                tensor.dtype,
                shape=tensor.shape,
                name=value.name,
                base_dir=data.parent,
                metadata_props=dict(tensor.metadata_props),
            )
            value.const_value = reference
            done += tensor.nbytes
            if progress:
                progress("weights", done / total)


def _located(tensor: ir.ExternalTensor, value: ir.Value) -> ir.ExternalTensor:
    """Another value's reference to the same place in the file."""
    return ir.ExternalTensor(
        tensor.location,
        tensor.offset,
        tensor.length,
        tensor.dtype,
        shape=tensor.shape,
        name=value.name,
        base_dir=tensor.base_dir,
        metadata_props=dict(value.const_value.metadata_props),
    )
