"""`ingot verify`: hold a bundle against what its manifest promises."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .bundle import Bundle, describe_graph
from .engines import Engine, engine
from .errors import BundleError, EngineError, ExportError, InputError
from .load import open_engine
from .manifest import Graph
from .metrics import compare
from .parity_data import Call, load_calls

Open = Callable[[Bundle, Graph], Engine]


def verify(path: str | Path, *, deep: bool = False, open_graph: Open | None = None, **options: Any) -> list[str]:
    """Check schema, files and hashes; with `deep`, run every graph on its stored inputs and hold the outputs against the
    torch component's. Returns a line for everything that was found right, and for each graph that nothing here can run.

    Each engine is opened to compute as exactly as it can; `options` go to those that have them. `open_graph` opens the
    graphs whose engine cannot run on this machine. Raises BundleError at the first thing that is wrong.
    """
    return list(checks(path, deep=deep, open_graph=open_graph, **options))


def checks(path: str | Path, *, deep: bool = False, open_graph: Open | None = None, **options: Any) -> Iterator[str]:
    """The same, a line at a time as each check is done."""
    bundle = Bundle.open(path)
    files = bundle.manifest.files
    yield f"manifest: schema {bundle.manifest.schema}, {len(bundle.manifest.components)} components"
    yield f"files: {len(files)} of {len(files)} have their size and sha256 ({sum(f.size for f in files.values()) / 1e6:,.1f} MB)"
    if deep:
        for role, entry in bundle.manifest.components.items():
            for graph in entry.graphs:
                yield _run(bundle, role, graph, entry.parity_data, open_graph, options)


def _run(
    bundle: Bundle, role: str, graph: Graph, data: str | None, open_graph: Open | None, options: dict[str, Any]
) -> str:
    name = f"{role} on {describe_graph(graph)}"
    if data is None or graph.parity is None:
        raise BundleError(f"{name}: the bundle stores no parity data for it; export it again")
    absent = _absent(graph.engine)
    if absent and open_graph is None:
        return f"{name}: not run: {absent}"
    try:
        opened = open_graph(bundle, graph) if absent and open_graph else open_exactly(bundle, graph, **options)
    except (ExportError, InputError, EngineError) as error:
        if absent is None:
            raise
        return f"{name}: not run: {absent}; {error}"  # nor is there what exporting would run it with
    try:
        return _compared(name, graph, opened, load_calls(bundle.file(data)))
    finally:
        opened.close()


def _compared(name: str, graph: Graph, opened: Engine, calls: list[Call]) -> str:
    """Run a graph on the stored calls that it takes. Raises BundleError beyond the limit of its certificate."""
    assert graph.parity is not None
    worst, compared = 0.0, 0
    for inputs, outputs in calls:
        if not graph.signature.admits(inputs):
            continue  # a static graph takes the sizes of the first recording only
        found = opened.run({spec.name: inputs[spec.name] for spec in graph.signature.inputs})
        worst = max(worst, *(compare(outputs[output], array).rel_l2 for output, array in found.items()))
        compared += 1
    if not compared:
        raise BundleError(f"{name}: no stored call has the size that it takes; export it again")
    if worst > graph.parity.limit:
        raise BundleError(
            f"{name}: relative L2 {worst:.2e} over {compared} calls; the limit is {graph.parity.limit:.0e}"
        )
    return f"{name}: relative L2 {worst:.2e} over {compared} calls (limit {graph.parity.limit:.0e})"


def _absent(name: str) -> str | None:
    """Why this machine cannot run an engine at all; None when it can."""
    try:
        return None if engine(name).devices() else f"the engine {name} has no device here"
    except (EngineError, InputError) as error:  # not installed, or not known to this Ingot
        return str(error)


def open_exactly(bundle: Bundle, graph: Graph, **options: Any) -> Engine:
    """Open a graph with its engine's most exact arithmetic, and with those of the options that the engine has."""
    module = engine(graph.engine)
    known = inspect.signature(module.open_graph).parameters
    return open_engine(bundle, graph, **{**module.PARITY_OPTIONS, **{k: v for k, v in options.items() if k in known}})
