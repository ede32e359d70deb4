"""Engines: what opens a graph file and runs it. A file here is an engine, its name the key that a manifest uses; files
that begin with an underscore belong to one."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, get_type_hints

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..errors import EngineError, InputError, unknown
from ..signature import Signature

Arrays = dict[str, NDArray[Any]]


class Engine(Protocol):
    """A graph, opened. Several threads may run it at once.

    It may have two attributes that `run_in_batches` obeys: `most_rows`, the largest batch that one run takes, and `pad`,
    whether a shorter one must be filled up to it.
    """

    signature: Signature

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        """Compute every output from every input, by name; dtypes and shapes as the signature says.

        Raises InputError for inputs that do not fit, EngineError when the engine fails or the graph was closed.
        """
        ...

    def close(self) -> None:
        """Free what the graph holds. A second call does nothing."""
        ...


class Later:
    """An engine that is opened when it is first run: for a component that many calls do not need."""

    def __init__(self, opening: Callable[[], Engine], signature: Signature) -> None:
        self.signature = signature
        self._opening, self._lock = opening, threading.Lock()
        self._engine: Engine | None = None
        self._closed = False

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        """As the engine's own; the first call opens it."""
        return self.opened().run(inputs)

    def __getattr__(self, name: str) -> Any:
        # what an engine may have beside the protocol: `most_rows`, `pad`
        return getattr(self.opened(), name)

    def opened(self) -> Engine:
        """The engine. Raises EngineError once it was closed."""
        with self._lock:
            if self._closed:
                raise EngineError("the graph was closed: load the bundle again")
            if self._engine is None:
                self._engine = self._opening()
            return self._engine

    def close(self) -> None:
        """Close the engine if it was opened."""
        with self._lock:
            self._closed = True
            if self._engine is not None:
                self._engine.close()


class EngineModule(Protocol):
    """What a file in this folder offers."""

    PARITY_OPTIONS: Mapping[str, Any]  # what it is opened with to compute as exactly as it can

    def open_graph(
        self,
        file: Path,
        signature: Signature,
        *,
        stored: Mapping[str, Any] = ...,
        device: str | None = ...,
        **options: Any,
    ) -> Engine:
        """Open a graph file; `stored` is what the manifest keeps for the engine.

        Raises EngineError when the engine, a provider or the device is missing, or refuses the file.
        """
        ...

    def devices(self) -> list[str]:
        """The devices of this machine that it can use, the best first; none where it cannot run at all."""
        ...

    def report(self) -> dict[str, str]:
        """What this machine has of the engine: its version, devices, and how to install what is missing."""
        ...


def available() -> list[str]:
    """The engines that Ingot knows, installed here or not."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def engine(name: str) -> EngineModule:
    """The engine with this name. Raises InputError for one that Ingot does not know, EngineError for one that is not
    installed, naming the extra that installs it."""
    if name not in available():
        raise unknown("engine", name, available())
    try:
        module: EngineModule = importlib.import_module(f"{__name__}.{name}")
    except ModuleNotFoundError as error:
        what = "onnxruntime" if name == "onnx" else f"'ingot[{name}]'"
        raise EngineError(
            f"the engine {name} needs {error.name}, which is not installed: pip install {what}"
        ) from error
    except (ImportError, OSError) as error:  # a shared library that is missing or of another version
        raise EngineError(f"the engine {name} is installed but cannot be loaded: {error}") from error
    return module


def open_with(
    name: str, file: Path, signature: Signature, stored: Mapping[str, Any], options: Mapping[str, Any]
) -> Engine:
    """Open a graph with the engine of this name. Raises InputError for an option that the engine does not have."""
    module = engine(name)
    known = [
        key for key in inspect.signature(module.open_graph).parameters if key not in ("file", "signature", "stored")
    ]
    for option in options:
        if option not in known:
            raise unknown(f"option for the engine {name}", option, known)
    check_types(module.open_graph, options, f"option of the engine {name}")
    return module.open_graph(file, signature, stored=stored, **options)


def check_types(function: Callable[..., Any], options: Mapping[str, Any], kind: str) -> None:
    """Hold options against a function's annotations, as far as those are plain data. Raises InputError."""
    try:
        hints = get_type_hints(function)
    except NameError:  # a name that only type checkers see
        return
    for name, value in options.items():
        try:
            msgspec.convert(value, hints.get(name, Any))
        except msgspec.ValidationError as error:
            raise InputError(f"{kind}: {name}={value!r}: {error}") from error
        except TypeError:  # a class of an engine's own, or a path
            continue


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
    """Run a batch in parts: of the size that a static graph fixes, else of at most `most` and what the engine takes.

    Inputs as long as the first one are split along axis 0, others go to every part: a scalar timestep, and what has a length
    that the graph fixes whatever the batch is. A short last part is filled up with its last row where the graph wants a fixed
    size, and what that adds is cut off again.
    """
    first = graph.signature.inputs[0]
    total = len(inputs[first.name])
    size, pad = _part(graph, total, most)
    if total == size:
        return graph.run(inputs)
    whole = {spec.name for spec in graph.signature.inputs if spec.shape[:1] == (total,)}  # a part's length is another
    rowwise = {name for name, array in inputs.items() if np.shape(array)[:1] == (total,)} - whole
    parts = []
    for start in range(0, total, size):
        rows = np.minimum(np.arange(start, start + size if pad else min(start + size, total)), total - 1)
        parts.append(graph.run({name: array[rows] if name in rowwise else array for name, array in inputs.items()}))
    return {name: np.concatenate([part[name] for part in parts])[:total] for name in parts[0]}


def _part(graph: Engine, total: int, most: int | None) -> tuple[int, bool]:
    """Rows to a run, and whether a shorter part is filled up."""
    shape = graph.signature.inputs[0].shape
    if shape and isinstance(shape[0], int):
        return shape[0], True
    limit, pad = getattr(graph, "most_rows", None), getattr(graph, "pad", False)
    if pad and limit:
        return min(limit, most or limit), True
    return min(total, most or total, limit or total), False
