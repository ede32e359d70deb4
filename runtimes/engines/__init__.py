"""Engines: what opens a graph file and runs it. A file here is an engine, its name the key that a manifest uses."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import EngineError, unknown
from ..signature import Signature

Arrays = dict[str, NDArray[Any]]


class Engine(Protocol):
    """A graph, opened."""

    signature: Signature

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        """Compute every output from every input, by name; dtypes and shapes as the signature says."""
        ...


class EngineModule(Protocol):
    """What a file in this folder offers."""

    def open_graph(self, file: Path, signature: Signature, **options: Any) -> Engine:
        """Open a graph file. Raises EngineError when the engine or a provider is missing or refuses the file."""
        ...

    def report(self) -> dict[str, str]:
        """What this machine has of the engine: its version, devices, and how to install what is missing."""
        ...


def available() -> list[str]:
    """The engines that Ingot knows, installed here or not."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def engine(name: str) -> EngineModule:
    """The engine with this name."""
    if name not in available():
        raise unknown("engine", name, available())
    try:
        module: EngineModule = importlib.import_module(f"{__name__}.{name}")
    except ModuleNotFoundError as error:
        raise EngineError(
            f"the engine {name} needs {error.name}, which is not installed: pip install {error.name}"
        ) from error
    return module


def fit(signature: Signature, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
    """The inputs in the dtypes that the signature wants (floats to floats only), checked against it."""
    wanted = {spec.name: np.dtype(spec.dtype) for spec in signature.inputs}
    cast = {
        name: array.astype(wanted[name]) if name in wanted and _both_float(array.dtype, wanted[name]) else array
        for name, array in inputs.items()
    }
    signature.check(cast)
    return cast


def _both_float(a: np.dtype[Any], b: np.dtype[Any]) -> bool:
    return a != b and np.issubdtype(a, np.floating) and np.issubdtype(b, np.floating)


def run_in_batches(graph: Engine, inputs: Mapping[str, NDArray[Any]], most: int | None = None) -> Arrays:
    """Run a batch in parts: of the size that a static graph fixes, else of at most `most`, else whole.

    Inputs as long as the first one are split along axis 0, others (a scalar timestep) go to every part. A short last part
    is filled up with its last row for a static graph, and what that adds is cut off again.
    """
    first = graph.signature.inputs[0]
    fixed = first.shape[0] if first.shape and isinstance(first.shape[0], int) else None
    total = len(inputs[first.name])
    size = fixed or min(most or total, total)
    if total == size:
        return graph.run(inputs)
    parts = []
    for start in range(0, total, size):
        rows = np.minimum(np.arange(start, start + size if fixed else min(start + size, total)), total - 1)
        parts.append(
            graph.run(
                {name: array[rows] if np.shape(array)[:1] == (total,) else array for name, array in inputs.items()}
            )
        )
    return {name: np.concatenate([part[name] for part in parts])[:total] for name in parts[0]}
