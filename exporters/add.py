"""Adding targets to a bundle that exists: the same model is cast again, into a copy that takes the bundle's place."""

from __future__ import annotations

import dataclasses
import datetime
import gc
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch

from ingot.runtimes import manifest as manifests
from ingot.runtimes.bundle import Bundle
from ingot.runtimes.errors import ExportError, InputError
from ingot.runtimes.manifest import Addition, ComponentEntry, Manifest
from ingot.runtimes.metrics import compare
from ingot.runtimes.parity_data import load_calls

from .atomic import atomic_folder
from .bundle_writer import save_manifest, versions, with_options
from .cast import cast_components, finish
from .checkpoint import Checkpoint
from .component import Component
from .deepcache import BRANCH, SHALLOW
from .export import components_of, load, prepare, reference_of
from .long_prompts import AXIS, require_long_prompts
from .lora import fuse_again
from .picture import Reference, compare_pictures
from .relink import described, relink
from .request import Request, request
from .safety import ROLE as SAFETY_CHECKER
from .textual_inversion import add_again

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
    vae: Any = None,
    revision: str | None = None,
    config: str | Path | None = None,
    allow_pickle: bool = False,
    overwrite: bool = False,
    command: str | None = None,
    progress: bool = True,
) -> Path:
    """Add graphs for the targets `to` to a bundle, held against the model and its picture as `export` does.

    `model` is needed where the bundle's own source (a folder, a hub id) is no longer there, and `vae` where the bundle was
    made with another than the model's own; rewrites and DeepCache's branch are the bundle's; the rest is as in `export`.
    The graphs that the bundle has of such a target are replaced with `overwrite`. Until everything has passed, the bundle
    stays as it was. Raises InputError for a model that does not answer as the bundle's did, and what `export` raises.
    """
    wanted = request(to, dtype, height, width, batch, static, options, progress)
    old = Bundle.open(Path(bundle).resolve())
    wanted = _as_before(wanted, old)
    _refuse_present(old, wanted, overwrite)
    with atomic_folder(old.path, overwrite=True) as folder:
        checkpoint = _checkpoint(old, model, revision, config, allow_pickle, vae)
        wanted = prepare(checkpoint, wanted, old.path)
        manifest, reference = _cast(old, checkpoint, folder, wanted, command)
        del checkpoint  # as in `export`
        gc.collect()
        pictures = compare_pictures(folder, manifest, reference, wanted)
        manifest = msgspec.structs.replace(manifest, parity={**manifest.parity, **pictures})
        save_manifest(folder, manifest)
        Bundle.open(folder)  # the old bundle goes only when the new one can be trusted
    return Path(bundle)


def _as_before(wanted: Request, old: Bundle) -> Request:
    """The request with what the bundle was made with. Raises InputError for a target that cannot have it."""
    wanted = dataclasses.replace(
        wanted,
        rewrites=_rewrites(old),
        deep_cache=_branch(old),
        long_prompts=_takes_any_tokens(old),
        safety_checker=SAFETY_CHECKER in old.manifest.components,
    )
    require_long_prompts(wanted)
    return wanted


def _cast(
    old: Bundle, checkpoint: Checkpoint, folder: Path, wanted: Request, command: str | None
) -> tuple[Manifest, Reference | None]:
    """Fill the folder with the old bundle and the new graphs; the manifest, and the picture that is still to be held against."""
    pipe = checkpoint.pipe
    reference = reference_of(pipe, wanted)
    components = components_of(pipe, wanted)
    _require_same(old, components)
    kept = _link(old, folder, wanted.targets)
    entries, files = cast_components(components, folder, wanted, parity_data=_parity_data(old), let_go=checkpoint.ours)
    finish(folder, pipe, files)
    return with_options(_merged(old.manifest, kept, entries, folder, command, wanted), pipe), reference


def _checkpoint(
    old: Bundle, model: Any, revision: str | None, config: str | Path | None, allow_pickle: bool, vae: Any
) -> Checkpoint:
    """The model that was named, or the bundle's own source, with the words and LoRAs that the bundle was made with."""
    checkpoint = _source(old, model, revision, config, allow_pickle, vae)
    if not isinstance(model, str | Path | None):
        return checkpoint  # a pipeline in memory is taken as it is
    pipe = add_again(checkpoint.pipe, old.manifest.provenance.textual_inversions)
    fuse_again(pipe, old.manifest.provenance.loras)
    return dataclasses.replace(checkpoint, pipe=pipe)


def _source(
    old: Bundle, model: Any, revision: str | None, config: str | Path | None, allow_pickle: bool, vae: Any
) -> Checkpoint:
    """The model that was named, or the one that the bundle says it was made from."""
    origin = old.manifest.provenance
    if model is not None:
        return load(model, revision=revision, config=config, allow_pickle=allow_pickle, vae=vae)
    options = {"config": config, "allow_pickle": allow_pickle, "vae": vae}
    try:
        return load(origin.source, revision=revision or origin.revision, **options)
    except (InputError, ExportError) as error:
        raise InputError(
            f"{old.path} was made from {origin.source!r}, which cannot be loaded: {error}. Name the model with --model (model=…)"
        ) from error


def _rewrites(old: Bundle) -> tuple[str, ...]:
    """What the bundle's graphs were rewritten by, in order; a component names only what changed it."""
    graphs = [graph for entry in old.manifest.components.values() for graph in entry.graphs]
    return tuple(dict.fromkeys(name for graph in graphs for name in graph.rewrites))


def _branch(old: Bundle) -> int | None:
    """DeepCache's branch, where the bundle has a shallow UNet."""
    shallow = old.manifest.components.get(SHALLOW)
    return None if shallow is None else shallow.config.get(BRANCH)


def _takes_any_tokens(old: Bundle) -> bool:
    """Whether the bundle was made for prompts of any length."""
    graphs = [graph for entry in old.manifest.components.values() for graph in entry.graphs]
    return any(AXIS in spec.shape for graph in graphs for spec in graph.signature.inputs)


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
    """The old bundle in the new folder without the graphs of these targets."""
    kept = relink(old, folder, lambda graph: graph.engine not in replaced)
    parity = {name: picture for name, picture in old.manifest.parity.items() if name not in replaced}
    return msgspec.structs.replace(kept, parity=parity)


def _parity_data(old: Bundle) -> dict[str, str]:
    return {role: entry.parity_data for role, entry in old.manifest.components.items() if entry.parity_data}


def _with(entry: ComponentEntry, new: ComponentEntry) -> ComponentEntry:
    """A component with further graphs, and with what a bundle of an older schema did not keep of it."""
    return msgspec.structs.replace(
        entry, graphs=(*entry.graphs, *new.graphs), method=new.method, arguments=new.arguments, extras={**entry.extras, **new.extras}
    )  # fmt: skip


def _merged(
    manifest: Manifest,
    kept: Manifest,
    entries: Mapping[str, ComponentEntry],
    folder: Path,
    command: str | None,
    wanted: Request,
) -> Manifest:
    """The old manifest with the new graphs, and with an entry for every file that is new."""
    components = {role: _with(entry, entries[role]) for role, entry in kept.components.items()}
    created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    addition = Addition(targets=tuple(wanted.targets), created=created, command=command, versions=versions())
    origin = manifest.provenance
    return msgspec.structs.replace(
        kept,
        schema=manifests.SCHEMA,
        components=components,
        files=described(folder, kept.files),
        provenance=msgspec.structs.replace(origin, additions=(*origin.additions, addition)),
    )
