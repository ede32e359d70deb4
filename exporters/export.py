"""Casting: a checkpoint becomes a verified bundle. Start reading here."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch
from tqdm import tqdm

from ingot.runtimes.bundle import Bundle
from ingot.runtimes.errors import InputError, unknown
from ingot.runtimes.manifest import ComponentEntry, Graph, Manifest

from . import parity
from .atomic import atomic_folder
from .bundle_writer import (
    component_entry,
    make_manifest,
    provenance,
    save_manifest,
    write_configs,
    write_parity_data,
    write_tokenizers,
)
from .capture import capture
from .checkpoint import Checkpoint, load_checkpoint
from .component import Component
from .estimate import BYTES, estimate, readable, require_disk
from .onnx_weights import data_files, share_weights
from .picture import Reference, compare_picture, default_size, reference_picture
from .targets import available, target


def export(
    model: Any,
    output: str | Path,
    *,
    to: str | Sequence[str] = "onnx",
    dtype: str = "float32",
    height: int | None = None,
    width: int | None = None,
    batch: int = 1,
    static: bool = False,
    revision: str | None = None,
    config: str | Path | None = None,
    allow_pickle: bool = False,
    overwrite: bool = False,
    command: str | None = None,
    progress: bool = True,
) -> Path:
    """Cast a checkpoint into a bundle at `output`, and return its path.

    `model` is the word "shapes", a folder, a hub id, a .safetensors file (with `config`, a folder of the same
    architecture), or a diffusers pipeline on the CPU, which is cast to float32 in place. `to` names targets, `dtype` is
    float32 or float16. `height` and `width` (pixels) and `batch` are what the model is recorded at; `static` fixes the
    graphs to them. `command` goes into the provenance. Every graph is held against the torch component and the whole
    pipeline against diffusers; the bundle appears only after all of them passed. Raises InputError for arguments that
    cannot be used, ExportError for a model or a disk that cannot, ParityError for a graph that computes something else.
    """
    targets = [to] if isinstance(to, str) else list(to)
    size = _check(targets, dtype, height, width, batch)
    final = Path(output)
    with atomic_folder(final, overwrite=overwrite) as folder:
        checkpoint = _load(model, revision=revision, allow_pickle=allow_pickle, config=config)
        needs = estimate(checkpoint.pipe, dtype)
        say = tqdm.write if progress else (lambda _: None)
        say(f"{checkpoint.source}: {needs}")
        require_disk(final, needs.disk)
        if static and size is None:
            size = default_size(checkpoint.pipe)
        manifest, reference = cast(checkpoint, folder, targets, dtype, size, batch, static, command, progress)
        del checkpoint  # the engines that make the picture need the memory that the torch model holds
        gc.collect()
        if reference is not None:
            pictures = {name: compare_picture(Bundle(folder, manifest), name, reference, dtype) for name in targets}
            manifest = msgspec.structs.replace(manifest, parity=pictures)
            for name, picture in pictures.items():
                far = "equal to" if picture.psnr_db is None else f"{picture.psnr_db:.1f} dB from"
                say(f"picture on {name}: {far} diffusers'")
        save_manifest(folder, manifest)  # last, so that an unfinished folder does not open
    return final


def cast(
    checkpoint: Checkpoint, folder: Path, targets: Sequence[str], dtype: str, size: tuple[int, int] | None, batch: int,
    static: bool, command: str | None, progress: bool,
) -> tuple[Manifest, Reference | None]:  # fmt: skip
    """Fill an empty folder: capture, graphs with their certificates, configs. Returns the manifest, yet to be written, and
    the picture that the whole bundle is still to be held against."""
    pipe = checkpoint.pipe
    with tqdm(desc="recording the pipeline", disable=not progress, bar_format="{desc} {elapsed}") as bar:
        reference = reference_picture(pipe, size if static else None, batch if static else 1)
        components = capture(pipe, size=size, batch=batch)
        bar.set_description("recorded " + ", ".join(component.role for component in components))
    entries = _cast_components(components, folder, targets, dtype, static, progress)
    entries = _share(entries, components, folder, static)
    write_configs(pipe, components, folder)
    manifest = make_manifest(folder, pipe, entries, write_tokenizers(pipe, folder), provenance(checkpoint, command))
    return manifest, reference


def _cast_components(
    components: list[Component], folder: Path, targets: Sequence[str], dtype: str, static: bool, progress: bool
) -> dict[str, ComponentEntry]:
    entries = {}
    with tqdm(total=len(components) * len(targets), disable=not progress, unit="graph") as bar:
        for component in components:
            data = write_parity_data(component, folder)
            graphs = []
            for name in targets:
                bar.set_description(f"{component.role} to {name}")
                graphs.append(_cast_one(component, name, folder, dtype, static, bar))
                bar.update()
            component.traces.clear()
            entries[component.role] = component_entry(component, tuple(graphs), data)
    return entries


def _cast_one(component: Component, name: str, folder: Path, dtype: str, static: bool, bar: Any) -> Graph:
    written = target(name).export(
        component,
        folder / component.role,
        dtype=dtype,
        static=static,
        progress=lambda stage, _: bar.set_postfix_str(stage),
    )
    files = tuple(file.relative_to(folder).as_posix() for file in (written.path, *written.extra_files))
    bar.set_postfix_str("parity")
    certificate = parity.check_file(component, name, written.path, written.signature, written.dtype, static=static)
    size = sum((folder / file).stat().st_size for file in files)
    bar.write(
        f"{component.role}: {readable(size)}, relative L2 {certificate.rel_l2:.1e} (limit {certificate.limit:.0e})"
    )
    return Graph(
        engine=name,
        precision=written.dtype,
        files=files,
        signature=written.signature,
        nodes=written.node_count,
        parity=certificate,
    )


def _share(
    entries: dict[str, ComponentEntry], components: list[Component], folder: Path, static: bool
) -> dict[str, ComponentEntry]:
    """Store weights that several ONNX graphs have in common once, say where they lie now, and certify what was rewritten
    again."""
    if not share_weights(sorted(folder.glob("*/*.onnx"))).files:
        return entries
    by_role = {component.role: component for component in components}

    def rewritten(role: str, graph: Graph) -> Graph:
        path = folder / graph.files[0]
        files = (
            tuple(file.relative_to(folder).as_posix() for file in data_files(path)) if path.suffix == ".onnx" else ()
        )
        if files == graph.files[1:]:
            return graph
        parity_again = parity.check_file(
            by_role[role], graph.engine, path, graph.signature, graph.precision, static=static
        )
        return msgspec.structs.replace(graph, files=(graph.files[0], *files), parity=parity_again)

    return {
        role: msgspec.structs.replace(entry, graphs=tuple(rewritten(role, graph) for graph in entry.graphs))
        for role, entry in entries.items()
    }


def _check(
    targets: Sequence[str], dtype: str, height: int | None, width: int | None, batch: int
) -> tuple[int, int] | None:
    for name in targets:
        if name not in available():
            raise unknown("target", name, available())
    if dtype not in BYTES:
        raise unknown("dtype", dtype, BYTES)
    if batch < 1:
        raise InputError(f"batch={batch}: at least 1 picture is needed")
    if height is None and width is None:
        return None
    sides = (height or width, width or height)
    if any(not isinstance(side, int) or side < 1 for side in sides):
        raise InputError(f"a size of {sides[0]}x{sides[1]} pixels cannot be recorded")
    return sides  # type: ignore[return-value]  # both are ints now


def _load(model: Any, **options: Any) -> Checkpoint:
    if isinstance(model, str | Path):
        return load_checkpoint(model, **options)
    if hasattr(model, "components") and hasattr(model, "config"):
        modules = [part for part in model.components.values() if isinstance(part, torch.nn.Module)]
        devices = {str(p.device) for module in modules for p in module.parameters()} - {"cpu"}
        if devices:
            raise InputError(
                f"the pipeline is on {', '.join(sorted(devices))}; export works on the CPU: pipe.to('cpu')"
            )
        for module in modules:
            module.float()
        return Checkpoint(model, type(model).__name__, None, None)
    raise InputError(f"a model is a name, a path or a diffusers pipeline, not {type(model).__name__}")
