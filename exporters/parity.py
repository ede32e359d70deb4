"""Hold a graph against the torch component on what the real pipeline asked of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ingot.runtimes import engines
from ingot.runtimes.errors import ParityError
from ingot.runtimes.manifest import Certificate
from ingot.runtimes.metrics import Difference, compare, decibels
from ingot.runtimes.signature import Signature

from .component import Call, Component
from .trace import graph_signature, precision

Arrays = Mapping[str, NDArray[Any]]

# Relative L2 that a graph may be away from the float32 component, on every output of every recorded call. Measured on
# small random models: 1e-6 in float32, 1e-3 in float16.
LIMITS = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 8e-2}


def check(component: Component, run: Callable[[Arrays], Arrays], dtype: str, *, static: bool = False) -> Certificate:
    """Run a graph of the component on its recorded inputs, in the graph's own dtypes, and certify how near it is.

    A static graph is asked the calls of its own size only. Raises ParityError saying which call and output is how far
    from what the component answered when it was recorded.
    """
    signature, limit = graph_signature(component, dtype, static=static), LIMITS[precision(component, dtype)]
    calls = [(number, call) for number, call in enumerate(component.calls) if _fits(call, signature)]
    worst = [_compare_call(component.role, number, call, run, signature, limit) for number, call in calls]
    rel_l2 = max(difference.rel_l2 for difference in worst)
    return Certificate(
        calls=len(calls),
        max_abs=max(difference.max_abs for difference in worst),
        rel_l2=rel_l2,
        sqnr_db=decibels(rel_l2) if rel_l2 else None,
        limit=limit,
    )


def check_file(
    component: Component,
    engine: str,
    path: Path,
    signature: Signature,
    dtype: str,
    *,
    static: bool = False,
    **options: Any,
) -> Certificate:
    """The same for a graph file, opened with the engine of this name; `options` go to it."""
    graph = engines.engine(engine).open_graph(path, signature, **options)
    return check(component, graph.run, dtype, static=static)


def _compare_call(
    role: str, number: int, call: Call, run: Callable[[Arrays], Arrays], signature: Signature, limit: float
) -> Difference:
    """The worst output of one call by each figure."""
    found = run({spec.name: call.inputs[spec.name].numpy().astype(spec.dtype) for spec in signature.inputs})
    differences = {name: compare(tensor.numpy(), np.asarray(found[name])) for name, tensor in call.outputs.items()}
    name, far = max(differences.items(), key=lambda item: item[1].rel_l2)
    if not far.rel_l2 <= limit:
        raise ParityError(
            f"{role}: output {name!r} of recorded call {number} is {far.rel_l2:.2e} (relative L2; worst value off by "
            f"{far.max_abs:.2e}) from the torch model; the limit is {limit:.0e}"
        )
    return Difference(max(d.max_abs for d in differences.values()), far.rel_l2, far.sqnr_db, far.cosine)


def _fits(call: Call, signature: Signature) -> bool:
    return all(
        isinstance(dim, str) or size == dim
        for spec in signature.inputs
        for size, dim in zip(call.inputs[spec.name].shape, spec.shape, strict=True)
    )
