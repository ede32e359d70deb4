"""A bundle of what can be exported of a pipeline: for classes whose other modules are to stay torch beside it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ingot.runtimes.errors import ExportError
from ingot.runtimes.manifest import ComponentEntry

from .atomic import atomic_folder
from .bundle_writer import make_manifest, provenance, save_manifest, write_configs, write_tokenizers
from .capture import capture
from .cast import cast_components
from .component import Component
from .export import load
from .request import Request, request


@dataclass(frozen=True)
class Pieces:
    """Where the bundle lies, the roles that it has, those of them that are fixed to the first recording's sizes, and why it
    lacks the others."""

    path: Path
    roles: tuple[str, ...]
    fixed: tuple[str, ...]
    refused: dict[str, str]


def export_pieces(
    pipe: Any,
    output: str | Path,
    *,
    to: str = "onnx",
    dtype: str | None = None,
    inputs: Mapping[str, Any] | None = None,
    static: bool = False,
) -> Pieces:
    """Cast every component of a diffusers pipeline that can be, for `ingot.attach`.

    As `ingot.export`, but a component that cannot be written with free sizes is written with those of the first recording,
    and one that cannot be recorded, traced or written at all, or whose graph misses its parity, is left out with the
    reason; `inputs` are what the pipeline's call needs beside the table by parameter name. `static` fixes all to the first
    recording, which is traced several times faster. Raises ExportError when the pipeline cannot be run, or nothing of it
    can be cast.
    """
    wanted = request(to, dtype, None, None, 1, static, None, False)
    refused: dict[str, str] = {}
    with atomic_folder(Path(output).resolve(), overwrite=False) as folder:
        checkpoint = load(pipe)
        components = capture(pipe, inputs=inputs, refused=refused)
        entries: dict[str, ComponentEntry] = {}
        fixed: list[str] = []
        for component in components:
            try:
                entries |= _cast(component, folder, wanted, fixed)
            except ExportError as error:
                refused[component.role] = str(error)
        if not entries:
            raise ExportError(f"nothing of {type(pipe).__name__} can be exported: {refused}")
        write_configs(pipe, [component for component in components if component.role in entries], folder)
        save_manifest(
            folder, make_manifest(folder, pipe, entries, write_tokenizers(pipe, folder), provenance(checkpoint, None))
        )
    return Pieces(Path(output), tuple(entries), tuple(fixed), refused)


def _cast(component: Component, folder: Path, wanted: Request, fixed: list[str]) -> dict[str, ComponentEntry]:
    """The component's entry, with free sizes or the first recording's. Raises the first ExportError where neither can be."""
    refusal: ExportError | None = None
    for static in (True,) if wanted.static else (False, True):
        try:
            entries = cast_components([component], folder, replace(wanted, static=static))[0]
        except ExportError as error:
            refusal = refusal or error
            component.traces.clear()
            shutil.rmtree(folder / component.role, ignore_errors=True)
            (folder / "parity" / f"{component.role}.npz").unlink(missing_ok=True)
        else:
            if static:
                fixed.append(component.role)
            return entries
    assert refusal is not None
    raise refusal
