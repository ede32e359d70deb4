"""Where a graph's weights lie: inside it, beside it, or in one file for several graphs.

Sharing, as measured with ONNX Runtime 1.31.1: it refuses a location that leaves the model's folder ("External data
path escapes model directory"), `../` and symbolic links alike, by path and from bytes. It takes a file of the model's
own folder that another graph uses too, and a hard link. (It also takes a root folder for all locations, by the session
option `session.model_external_initializers_file_folder_path`; other readers of a bundle have no such option.) So what
is shared goes to one file; graphs of one folder refer to it, and each other folder with a graph that needs it holds a
hard link to it. No engine has to do anything. Where the file system has no hard links the file is copied. One reader is
stricter than the engines: Python's `onnx.load` (1.23) refuses external data with more than one hard link.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from .graph_file import Progress

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
    """What was moved: the files that hold it, one to a folder and all one on disk; how many tensors; what it saves."""

    files: tuple[Path, ...]
    tensors: int
    saved_bytes: int


def save(
    model: ir.Model, path: Path, *, external_bytes: int = EXTERNAL_BYTES, progress: Progress | None = None
) -> tuple[Path, ...]:
    """Write the model, with its weights in `<name>_data` where they come to more than `external_bytes`.

    Tensors go from where they are straight to the file, one at a time. Returns the files written beside `path`. The
    model is used up: its tensors are references to the file afterwards.
    """
    large = [value for value in _stored(model) if tensor_of(value).nbytes >= SMALL_BYTES]
    if sum(tensor_of(value).nbytes for value in large) <= external_bytes:
        write_anew(model, path)
        return ()
    data = path.with_name(path.name + "_data")
    _move(large, data, progress)
    write_anew(model, path)
    return (data,)


def share_weights(graphs: Sequence[Path]) -> Shared:
    """Store what several of these ONNX files hold alike once, in `shared.onnx_data`, and rewrite them in place.

    Only tensors of at least 4 KiB with equal type, shape and bytes, and only where they lie in several places: two graphs
    that read one file share it already. Weights that are not shared stay where they were, inside or beside the graph.
    Nothing is changed when nothing is shared.
    """
    models = {path: _load(path) for path in graphs}
    groups = _alike(models)
    if not groups:
        return Shared((), 0, 0)
    touched = {path for group in groups for path, _ in group}
    saved = sum(tensor_of(group[0][1]).nbytes * (len({_place(*one) for one in group}) - 1) for group in groups)
    sources = {_data_of(value) for group in groups for _, value in group} - {None}
    files = _write_shared([[value for _, value in group] for group in groups], sorted(touched))
    for path in sorted(touched | _compact(models, sorted(data for data in sources if data))):
        _rewrite(models[path], path)
    return Shared(files, len(groups), saved)


def data_files(graph: Path) -> tuple[Path, ...]:
    """The files beside a graph that hold weights of it."""
    tensors = [tensor_of(value) for value in _stored(ir.load(graph))]
    names = {Path(tensor.location).name for tensor in tensors if isinstance(tensor, ir.ExternalTensor)}
    return tuple(graph.with_name(name) for name in sorted(names))


def write_anew(model: ir.Model, path: Path) -> None:
    """Write the graph, never in place: the file that is there may be a hard link to another bundle's."""
    fresh = path.with_name(path.name + ".new")
    ir.save(model, fresh)
    fresh.replace(path)


def tensor_of(value: ir.Value) -> Any:
    """An initializer's tensor; untyped, because onnx_ir's protocol for it leaves out `tofile`."""
    assert value.const_value is not None
    return value.const_value


def _load(path: Path) -> ir.Model:
    """The graph, with its external tensors by absolute paths: onnx_ir reads no relative one with several hard links."""
    model = ir.load(path)
    for value in _stored(model):
        tensor = tensor_of(value)
        if isinstance(tensor, ir.ExternalTensor):
            data = (path.parent / tensor.location).absolute()
            value.const_value = _reference(value, data, tensor.offset or 0, relative=False)
    return model


def _stored(model: ir.Model) -> list[ir.Value]:
    return [value for value in model.graph.initializers.values() if value.const_value is not None]


def _alike(models: dict[Path, ir.Model]) -> list[list[tuple[Path, ir.Value]]]:
    """Groups of equal tensors of more than one graph that do not lie in the same places for all of them. Only what has a
    companion in shape is read at all, and what lies in one place is read once."""
    alike: dict[Any, list[tuple[Path, ir.Value]]] = defaultdict(list)
    for path, model in models.items():
        for value in _stored(model):
            tensor = tensor_of(value)
            if tensor.nbytes >= SHARE_BYTES:
                alike[tensor.dtype, tuple(tensor.shape)].append((path, value))
    equal: dict[bytes, list[tuple[Path, ir.Value]]] = defaultdict(list)
    digests: dict[Any, bytes] = {}
    for (dtype, shape), group in alike.items():
        for path, value in group if _is_scattered(group) else ():
            place = _place(path, value)
            if place not in digests:
                digest = hashlib.sha256(f"{dtype} {shape} ".encode())
                digest.update(tensor_of(value).tobytes())
                digests[place] = digest.digest()
            equal[digests[place]].append((path, value))
    return [group for group in equal.values() if _is_scattered(group)]


def _is_scattered(group: list[tuple[Path, ir.Value]]) -> bool:
    """Whether these tensors belong to several graphs, of which not all read them in the same places."""
    places: dict[Path, set[Any]] = defaultdict(set)
    for path, value in group:
        places[path].add(_place(path, value))
    return len({frozenset(found) for found in places.values()}) > 1


def _place(path: Path, value: ir.Value) -> tuple[Any, ...]:
    """Where a tensor lies on disk: in which file, by device and inode, and from where on; or in which graph."""
    data = _data_of(value)
    if data is None:
        return path, value.name
    found = data.stat()
    return found.st_dev, found.st_ino, tensor_of(value).offset


def _data_of(value: ir.Value) -> Path | None:
    """The file beside the graph that a tensor lies in."""
    tensor = tensor_of(value)
    return Path(tensor.base_dir, tensor.location) if isinstance(tensor, ir.ExternalTensor) else None


def _write_shared(groups: list[list[ir.Value]], graphs: list[Path]) -> tuple[Path, ...]:
    folders = sorted({path.parent for path in graphs})
    name = _free_name(folders)
    files = tuple(folder / name for folder in folders)
    _move([group[0] for group in groups], files[0], None)
    for group in groups:
        for value in group[1:]:
            value.const_value = _reference(value, files[0], tensor_of(group[0]).offset)
    for file in files[1:]:
        file.unlink(missing_ok=True)
        try:
            os.link(files[0], file)
        except OSError:
            shutil.copyfile(files[0], file)
    return files


def _free_name(folders: list[Path]) -> str:
    """A name that none of the folders has: graphs that were there before may read the one that it has."""
    stem, suffix = SHARED_FILE.split(".")
    names = (SHARED_FILE, *(f"{stem}-{number}.{suffix}" for number in range(2, 1000)))
    return next(name for name in names if not any((folder / name).exists() for folder in folders))


def _compact(models: dict[Path, ir.Model], sources: list[Path]) -> set[Path]:
    """Write data files anew without what was taken out of them; the graphs that read them, whose references change.

    A file that other graphs read, or another bundle by a hard link, stays as it is.
    """
    changed: set[Path] = set()
    for data in sources:
        if data.stat().st_nlink > 1 or _other_readers(data, models):
            continue
        readers = [
            (path, value) for path, model in models.items() for value in _stored(model) if _data_of(value) == data
        ]
        if not readers:
            data.unlink()
            continue
        at_offset = {tensor_of(value).offset: value for _, value in readers}
        offsets = {id(value): tensor_of(value).offset for _, value in readers}
        _move(list(at_offset.values()), data, None)
        for _, value in readers:
            value.const_value = _reference(value, data, tensor_of(at_offset[offsets[id(value)]]).offset)
        changed |= {path for path, _ in readers}
    return changed


def _other_readers(data: Path, models: Iterable[Path]) -> bool:
    others = set(data.parent.glob("*.onnx")) - {
        data.parent / path.name for path in models if path.parent.absolute() == data.parent
    }
    return any(data in data_files(other) for other in others)


def _rewrite(model: ir.Model, path: Path) -> None:
    """Write the graph anew, its references relative to its folder."""
    for value in _stored(model):
        data = _data_of(value)
        if data is not None:
            value.const_value = _reference(value, data, tensor_of(value).offset)
    write_anew(model, path)


def _move(values: Sequence[ir.Value], data: Path, progress: Progress | None) -> None:
    """Write the values' tensors to a file, one at a time, and leave references to it in their place.

    The file may be one that some of them are read from: it is replaced when it is complete.
    """
    total = sum(tensor_of(value).nbytes for value in values) or 1
    fresh = data.with_name(data.name + ".new")
    offsets = []
    with fresh.open("wb") as file:
        for value in values:
            if tensor_of(value).nbytes >= ALIGNED_FROM:
                file.write(bytes(-file.tell() % ALIGNMENT))
            offsets.append(file.tell())
            tensor_of(value).tofile(file)
            if progress:
                progress("weights", min(1.0, file.tell() / total))
    fresh.replace(data)
    for value, offset in zip(values, offsets, strict=True):
        value.const_value = _reference(value, data, offset)


def _reference(value: ir.Value, data: Path, offset: int, *, relative: bool = True) -> ir.ExternalTensor:
    tensor = tensor_of(value)
    return ir.ExternalTensor(
        data.name if relative else str(data),
        offset,
        tensor.nbytes,
        tensor.dtype,
        shape=tensor.shape,
        name=value.name or "",
        base_dir=data.parent if relative else "",
        metadata_props=dict(tensor.metadata_props),
    )
