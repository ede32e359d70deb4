"""Components become graphs, each held against the torch module, their weights stored once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from tqdm import tqdm

from ingot.runtimes.manifest import ComponentEntry, Graph

from . import parity
from .bundle_writer import component_entry, require_parity_data, write_parity_data
from .component import Component
from .estimate import readable
from .extras import write_extras
from .graph_file import GraphFile, Progress
from .onnx_weights import data_files, share_weights
from .request import Request
from .stages import CHECKS, GRAPHS
from .targets import target

Files = dict[str, dict[str, GraphFile]]
"""Graphs by target and role."""


def cast_components(
    components: list[Component],
    folder: Path,
    wanted: Request,
    *,
    parity_data: Mapping[str, str] | None = None,
    let_go: bool = False,
) -> tuple[dict[str, ComponentEntry], Files]:
    """Write every component's graphs and, where it is not there yet, parity data into the folder; the manifest's entries,
    and the files by target.

    Graphs are held against the recordings, so that a component's weights are not needed once its graphs are written:
    `let_go` frees them then, before an engine takes the same memory again.
    """
    entries, files = {}, {name: {} for name in wanted.targets}  # type: tuple[dict[str, ComponentEntry], Files]
    with tqdm(total=len(components) * len(wanted.targets), disable=not wanted.progress, unit="graph") as bar:
        for number, component in enumerate(components, 1):
            data = (parity_data or {}).get(component.role) or write_parity_data(component, folder)
            with wanted.stages(GRAPHS):
                for name in wanted.targets:
                    bar.set_description(f"{component.role} to {name}")
                    files[name][component.role] = _write(component, name, folder, wanted, bar)
                component.traces.clear()
                entry = component_entry(component, (), data, write_extras(component, folder))
            if let_go:
                _forget(component, components[number:])
            graphs = []
            with wanted.stages(CHECKS):
                for name in wanted.targets:
                    bar.set_description(f"{component.role} on {name}")
                    written = files[name][component.role]
                    graphs += [certified(component, name, form, folder, bar) for form in (*written.forms, written)]
                    require_parity_data(component, folder / data, written.signature)
                    bar.update()
            entries[component.role] = msgspec.structs.replace(entry, graphs=tuple(graphs))
    return _share(entries, components, folder, files), files


def _forget(component: Component, later: Sequence[Component]) -> None:
    """Free the weights that no later component has, too."""
    needed = {parameter.data_ptr() for other in later for parameter in other.source.parameters()}
    for parameter in component.source.parameters():
        if parameter.data_ptr() not in needed:
            parameter.data = parameter.data.new_empty(0)


def finish(folder: Path, pipe: Any, files: Mapping[str, Mapping[str, GraphFile]]) -> None:
    """What a target writes for the bundle as a whole, such as tokenizers in its engine's own form."""
    for name, graphs in files.items():
        own = getattr(target(name), "finish", None)
        if own is not None:
            own(folder, pipe, graphs)


def certified(component: Component, name: str, written: GraphFile, folder: Path, bar: Any) -> Graph:
    """The manifest's entry for a graph, which is run and measured for it. Raises ParityError."""
    names = tuple(file.relative_to(folder).as_posix() for file in (written.path, *written.extra_files))
    bar.set_postfix_str("parity")
    certificate, computed = parity.check_file(component, name, written)
    size = sum((folder / file).stat().st_size for file in names)
    lower = "".join(
        f", computed in {dtype} {one.rel_l2:.1e} (limit {one.limit:.0e})" for dtype, one in computed.items()
    )
    if not bar.disable:
        bar.write(
            f"{component.role} on {name}: {written.dtype}{f', for {written.form}' if written.form else ''}, {readable(size)}, "
            f"relative L2 {certificate.rel_l2:.1e} "
            f"(limit {certificate.limit:.0e}){lower}"
        )
    return Graph(
        engine=name, precision=written.dtype, files=names, signature=written.signature, nodes=written.node_count,
        parity=certificate, options=written.stored, computed=computed, form=written.form, rewrites=component.rewrites,
    )  # fmt: skip


def _write(component: Component, name: str, folder: Path, wanted: Request, bar: Any) -> GraphFile:
    written: GraphFile = target(name).export(
        component,
        folder / component.role,
        dtype=wanted.dtypes[name],
        static=wanted.static,
        progress=_told(bar),
        **wanted.options.get(name, {}),
    )
    return written


def _told(bar: Any) -> Progress:
    """Shows each stage once: a bar that is drawn anew for every weight fills a log."""
    shown: list[str] = []

    def tell(stage: str, _: float) -> None:
        if shown != [stage]:
            shown[:] = [stage]
            bar.set_postfix_str(stage)

    return tell


def _share(
    entries: dict[str, ComponentEntry], components: list[Component], folder: Path, files: Files
) -> dict[str, ComponentEntry]:
    """Store weights that several ONNX graphs have in common once, say where they lie now, and certify what was rewritten
    again."""
    written = {form.path: form for graphs in files.values() for file in graphs.values() for form in (*file.forms, file)}
    graphs = [path for path in written if path.suffix == ".onnx"]
    if not share_weights(sorted(graphs)).files:
        return entries
    by_role = {component.role: component for component in components}

    def rewritten(role: str, graph: Graph) -> Graph:
        path = folder / graph.files[0]
        if path not in graphs:
            return graph
        others = tuple(name for name in graph.files[1:] if not name.endswith("_data"))  # a plan beside the graph
        now = (graph.files[0], *_names(path, folder), *others)
        if set(now) == set(graph.files):
            return graph
        certificate, computed = parity.check_file(by_role[role], graph.engine, written[path])
        return msgspec.structs.replace(graph, files=now, parity=certificate, computed=computed)

    return {
        role: msgspec.structs.replace(entry, graphs=tuple(rewritten(role, graph) for graph in entry.graphs))
        for role, entry in entries.items()
    }


def _names(path: Path, folder: Path) -> tuple[str, ...]:
    return tuple(file.relative_to(folder).as_posix() for file in data_files(path))
