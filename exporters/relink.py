"""A bundle's files in a new folder, for a copy that will take its place: links where nothing can write through them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import msgspec

from ingot.runtimes.bundle import Bundle, describe_file
from ingot.runtimes.manifest import ComponentEntry, FileEntry, Graph, Manifest, Quality


def relink(old: Bundle, folder: Path, keeps: Callable[[Graph], bool]) -> Manifest:
    """Everything of the old bundle in the new folder but the graphs that are not kept; the manifest of the graphs that
    are, with their files alone."""
    entries = {
        role: msgspec.structs.replace(entry, graphs=tuple(filter(keeps, entry.graphs)))
        for role, entry in old.manifest.components.items()
    }
    still = {file for entry in entries.values() for graph in entry.graphs for file in graph.files}
    graphs = {file for entry in old.manifest.components.values() for graph in entry.graphs for file in graph.files}
    files = {name: entry for name, entry in old.manifest.files.items() if name in still or name not in graphs}
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        # what no graph owns is copied: a target may write it again, and through a link it would write the old bundle's
        if name not in still or not _linked(old.file(name), folder / name):
            shutil.copyfile(old.file(name), folder / name)
    _copy_hidden(old.path, folder)
    files = {name: entry for name, entry in files.items() if name in still}
    quality = {name: one for name, one in old.manifest.quality.items() if _holds(name.split()[0], one, entries)}
    return msgspec.structs.replace(old.manifest, components=entries, files=files, quality=quality)


def _holds(engine: str, quality: Quality, entries: Mapping[str, ComponentEntry]) -> bool:
    """Whether all graphs of a set that was measured are still there."""
    return all(
        any((graph.engine, graph.precision) == (engine, precision) for graph in entries[role].graphs)
        for role, precision in quality.graphs.items()
    )


def without(manifest: Manifest, folder: Path, engine: str, role: str, precision: str) -> Manifest:
    """The manifest without a component's graphs of a precision, whose files are removed from the folder, and without what
    was measured with them."""
    entry = manifest.components[role]
    kept = tuple(g for g in entry.graphs if (g.engine, g.precision) != (engine, precision))
    if len(kept) == len(entry.graphs):
        return manifest
    components = {**manifest.components, role: msgspec.structs.replace(entry, graphs=kept)}
    used = {file for one in components.values() for graph in one.graphs for file in graph.files}
    gone = {file for graph in entry.graphs for file in graph.files} - used
    for name in gone:
        (folder / name).unlink()
    files = {name: one for name, one in manifest.files.items() if name not in gone}
    quality = {
        name: one
        for name, one in manifest.quality.items()
        if name.split()[0] != engine or one.graphs.get(role) != precision
    }
    return msgspec.structs.replace(manifest, components=components, files=files, quality=quality)


def described(folder: Path, known: dict[str, FileEntry]) -> dict[str, FileEntry]:
    """Size and hash of every file in a folder, those that are known taken over; hidden ones are the user's own."""
    return {name: known.get(name) or describe_file(file) for name, file in _listed(folder)}


def _linked(source: Path, place: Path) -> bool:
    try:
        os.link(source, place)
    except OSError:  # a file system without hard links
        return False
    return True


def _copy_hidden(old: Path, folder: Path) -> None:
    """What is the user's own, such as a `.git`: no manifest lists it."""
    for file in old.rglob("*"):
        name = file.relative_to(old)
        if any(part.startswith(".") for part in name.parts) and (file.is_symlink() or not file.is_dir()):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(file, folder / name, follow_symlinks=False)


def _listed(folder: Path) -> Iterator[tuple[str, Path]]:
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder)
        if file.is_file() and not any(part.startswith(".") for part in name.parts):
            yield name.as_posix(), file
