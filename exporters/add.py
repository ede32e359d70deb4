"""Adding targets to a bundle that exists: the same model is cast again, into a copy that takes the bundle's place."""

from __future__ import annotations

import datetime
import gc
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch

from ingot.runtimes import manifest as manifests
from ingot.runtimes.bundle import Bundle, describe_file
from ingot.runtimes.errors import ExportError, InputError
from ingot.runtimes.manifest import Addition, ComponentEntry, Manifest
from ingot.runtimes.metrics import compare
from ingot.runtimes.parity_data import load_calls

from .atomic import atomic_folder
from .bundle_writer import save_manifest, versions
from .capture import capture
from .cast import cast_components, finish
from .checkpoint import Checkpoint
from .component import Component
from .export import load, prepare
from .picture import compare_pictures, reference_picture
from .request import Request, request

# Relative L2 between the answers of the model that made the bundle and of the one at hand. The same weights on another
# machine differ by 1e-6; in another precision by 1e-3.
SAME = 1e-4


def add(
    bundle: str | Path,
    *,
    to: str | Sequence[str],
    model: Any = None,
    dtype: str | None = None,
    height: int | None = None,
    width: int | None = None,
    batch: int = 1,
    static: bool = False,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    revision: str | None = None,
    config: str | Path | None = None,
    allow_pickle: bool = False,
    overwrite: bool = False,
    command: str | None = None,
    progress: bool = True,
) -> Path:
    """Add graphs for the targets `to` to a bundle, held against the model and its picture as `export` does.

    `model` is needed where the bundle's own source (a folder, a hub id) is no longer there; the rest is as in `export`.
    The graphs that the bundle has of such a target are replaced with `overwrite`. Until everything has passed, the bundle
    stays as it was. Raises InputError for a model that does not answer as the bundle's did, and what `export` raises.
    """
    wanted = request(to, dtype, height, width, batch, static, options, progress)
    old = Bundle.open(Path(bundle).resolve())
    _refuse_present(old, wanted, overwrite)
    with atomic_folder(old.path, overwrite=True) as folder:
        checkpoint = _checkpoint(old, model, revision, config, allow_pickle)
        wanted = prepare(checkpoint, wanted, old.path)
        pipe = checkpoint.pipe
        reference = reference_picture(
            pipe, wanted.size if wanted.static else None, wanted.batch if wanted.static else 1
        )
        components = capture(pipe, size=wanted.size, batch=wanted.batch)
        _require_same(old, components)
        kept = _link(old, folder, wanted.targets)
        entries, files = cast_components(components, folder, wanted, parity_data=_parity_data(old))
        finish(folder, pipe, files)
        manifest = _merged(old.manifest, kept, entries, folder, command, wanted)
        del checkpoint, pipe, components
        gc.collect()
        pictures = compare_pictures(folder, manifest, reference, wanted)
        manifest = msgspec.structs.replace(manifest, parity={**manifest.parity, **pictures})
        save_manifest(folder, manifest)
        Bundle.open(folder)  # the old bundle goes only when the new one can be trusted
    return Path(bundle)


def _checkpoint(
    old: Bundle, model: Any, revision: str | None, config: str | Path | None, allow_pickle: bool
) -> Checkpoint:
    """The model that was named, or the one that the bundle says it was made from."""
    origin = old.manifest.provenance
    if model is not None:
        return load(model, revision=revision, config=config, allow_pickle=allow_pickle)
    try:
        return load(origin.source, revision=revision or origin.revision, config=config, allow_pickle=allow_pickle)
    except (InputError, ExportError) as error:
        raise InputError(
            f"{old.path} was made from {origin.source!r}, which cannot be loaded: {error}. Name the model with --model (model=…)"
        ) from error


def _refuse_present(old: Bundle, wanted: Request, overwrite: bool) -> None:
    present = {graph.engine for entry in old.manifest.components.values() for graph in entry.graphs}
    twice = sorted(present & set(wanted.targets))
    if twice and not overwrite:
        raise InputError(
            f"{old.path} has graphs for {', '.join(twice)}; give --overwrite (overwrite=True) to replace them"
        )


def _require_same(old: Bundle, components: list[Component]) -> None:
    """Refuse another model than the bundle's, by its components and by what they answer to the stored calls."""
    found, held = [component.role for component in components], list(old.manifest.components)
    if found != held:
        raise InputError(f"the model has the components {', '.join(found)}; the bundle was made from {', '.join(held)}")
    for component in components:
        data = old.component(component.role).parity_data
        for inputs, outputs in load_calls(old.file(data)) if data else ():
            try:
                answers = component.run({name: torch.from_numpy(array) for name, array in inputs.items()})
                far = max(compare(array, answers[name].numpy()).rel_l2 for name, array in outputs.items())
            except (RuntimeError, KeyError, TypeError, ValueError) as error:  # whatever other shapes and names lead to
                raise _another(old, f"{component.role} cannot answer a stored call ({error})") from error
            if not far <= SAME:
                raise _another(
                    old, f"{component.role} answers a stored call {far:.1e} (relative L2) from what it answered then"
                )


def _another(old: Bundle, how: str) -> InputError:
    return InputError(
        f"this is not the model that {old.path} was made from: {how}; name the right one with --model (model=…)"
    )


def _link(old: Bundle, folder: Path, replaced: Sequence[str]) -> Manifest:
    """Everything of the old bundle in the new folder but the graphs of these targets; the manifest of the graphs that are
    kept, with their files."""
    entries = {
        role: msgspec.structs.replace(entry, graphs=tuple(g for g in entry.graphs if g.engine not in replaced))
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
    parity = {name: picture for name, picture in old.manifest.parity.items() if name not in replaced}
    files = {name: entry for name, entry in files.items() if name in still}
    return msgspec.structs.replace(old.manifest, components=entries, files=files, parity=parity)


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


def _parity_data(old: Bundle) -> dict[str, str]:
    return {role: entry.parity_data for role, entry in old.manifest.components.items() if entry.parity_data}


def _listed(folder: Path) -> Iterator[tuple[str, Path]]:
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder)
        if file.is_file() and not any(part.startswith(".") for part in name.parts):
            yield name.as_posix(), file


def _merged(
    manifest: Manifest,
    kept: Manifest,
    entries: Mapping[str, ComponentEntry],
    folder: Path,
    command: str | None,
    wanted: Request,
) -> Manifest:
    """The old manifest with the new graphs, and with an entry for every file that is new."""
    components = {
        role: msgspec.structs.replace(entry, graphs=(*entry.graphs, *entries[role].graphs))
        for role, entry in kept.components.items()
    }
    found = dict(_listed(folder))
    files = {name: kept.files.get(name) or describe_file(file) for name, file in found.items()}
    created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    addition = Addition(targets=tuple(wanted.targets), created=created, command=command, versions=versions())
    origin = manifest.provenance
    return msgspec.structs.replace(
        kept,
        schema=manifests.SCHEMA,
        components=components,
        files=files,
        provenance=msgspec.structs.replace(origin, additions=(*origin.additions, addition)),
    )
