"""Hold a graph against the torch component on what the real pipeline asked of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ingot.runtimes import engines
from ingot.runtimes.bundle import Bundle
from ingot.runtimes.engines import Engine, open_with
from ingot.runtimes.errors import ParityError
from ingot.runtimes.manifest import Certificate, Graph
from ingot.runtimes.metrics import Difference, compare, decibels
from ingot.runtimes.signature import Signature

from .component import Call, Component
from .graph_file import GraphFile
from .trace import graph_signature, precision

Arrays = Mapping[str, NDArray[Any]]

# Relative L2 that a graph may be away from the float32 component, on every output of every recorded call. Measured on
# small random models: 1e-6 in float32, 1e-3 in float16, 1.5e-2 in bfloat16; but 8.4e-2 on an SDXL UNet whose answer is
# nearly zero, and that is torch's own distance there: the graph was equal to the bfloat16 module to the bit.
LIMITS = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 1e-1}


def check(
    component: Component,
    run: Callable[[Arrays], Arrays],
    dtype: str,
    *,
    static: bool = False,
    signature: Signature | None = None,
    limit: float | None = None,
) -> Certificate:
    """Run a graph of the component on its recorded inputs, in the graph's own dtypes, and certify how near it is.

    `signature` is what was written where that differs from the trace, `limit` another than the precision's. A static
    graph is asked the calls of its own size only. Raises ParityError saying which call and output is how far from what
    the component answered when it was recorded.
    """
    signature = signature or graph_signature(component, dtype, static=static)
    limit = limit or LIMITS[precision(component, dtype)]
    calls = [(number, call) for number, call in enumerate(component.calls) if signature.admits(call.inputs)]
    worst = [_compare_call(component.role, number, call, run, signature, limit) for number, call in calls]
    rel_l2 = max(difference.rel_l2 for difference in worst)
    return Certificate(
        calls=len(calls),
        max_abs=max(difference.max_abs for difference in worst),
        rel_l2=rel_l2,
        sqnr_db=decibels(rel_l2) if rel_l2 else None,
        limit=limit,
    )


def check_file(component: Component, engine: str, graph: GraphFile) -> tuple[Certificate, dict[str, Certificate]]:
    """Certify a graph file, computed as exactly as its engine can; and, by name, at the lower precisions that the engine
    would choose by itself on this machine."""
    opened = open_exactly(engine, graph.path, graph.signature, graph.stored)
    limit = LIMITS[graph.dtype]
    certificate = check(component, opened.run, graph.dtype, signature=graph.signature, limit=limit)
    opened.close()
    others = {}
    # a model that overflows in float16 is computed in float32 everywhere
    lower_ones = {} if graph.stored.get("keep_float32") else lower_precisions(engine)
    for name, options in lower_ones.items():
        opened = open_with(engine, graph.path, graph.signature, graph.stored, options)
        lower = max(LIMITS[name], limit)
        others[name] = check(component, opened.run, graph.dtype, signature=graph.signature, limit=lower)
        opened.close()
    return certificate, others


def open_exactly(name: str, file: Path, signature: Signature, stored: Mapping[str, Any]) -> Engine:
    """A graph as parity wants it: by what its target offers for that, else by its engine at its most exact."""
    from .targets import target

    own = getattr(target(name), "open_for_parity", None)
    if own is not None:
        opened: Engine = own(file, signature, stored)
        return opened
    return open_with(name, file, signature, stored, engines.engine(name).PARITY_OPTIONS)


def open_in_bundle(bundle: Bundle, graph: Graph) -> Engine:
    """The same for a bundle's graph: runs also those whose engine this machine does not have."""
    return open_exactly(graph.engine, bundle.file(graph.files[0]), graph.signature, graph.options)


def lower_precisions(name: str) -> dict[str, dict[str, Any]]:
    """The options that make an engine compute in each lower precision that it would choose by itself here."""
    from .targets import target

    if hasattr(target(name), "open_for_parity"):
        return {}
    found: dict[str, dict[str, Any]] = getattr(engines.engine(name), "computing_precisions", dict)()
    return found


def _compare_call(
    role: str, number: int, call: Call, run: Callable[[Arrays], Arrays], signature: Signature, limit: float
) -> Difference:
    """The worst output of one call by each figure."""
    found = run({spec.name: call.inputs[spec.name].numpy().astype(spec.dtype) for spec in signature.inputs})
    differences = {
        spec.name: compare(call.outputs[spec.name].numpy(), np.asarray(found[spec.name])) for spec in signature.outputs
    }
    name, far = max(differences.items(), key=lambda item: item[1].rel_l2)
    if not far.rel_l2 <= limit:
        raise ParityError(
            f"{role}: output {name!r} of recorded call {number} is {far.rel_l2:.2e} (relative L2; worst value off by "
            f"{far.max_abs:.2e}) from the torch model; the limit is {limit:.0e}"
        )
    return Difference(max(d.max_abs for d in differences.values()), far.rel_l2, far.sqnr_db, far.cosine)
