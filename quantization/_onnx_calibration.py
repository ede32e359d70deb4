"""Ranges of activations inside a graph, from running it on recorded inputs in ONNX Runtime.

The graph is made to answer, of each activation, its least and greatest value and a few thousand of its values: not the
activations themselves, which are gigabytes at full size.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from ingot.exporters.graph_file import Progress
from ingot.exporters.onnx_weights import save
from ingot.runtimes.engines._onnx_level import AUTO, optimization_level
from ingot.runtimes.errors import EngineError, InputError, unknown

from . import _onnx_integers as integers
from ._onnx_file import beside, load

METHODS = ("minmax", "percentile", "mse")
# Values taken of an activation in each call, at equal distances, and kept over all calls.
SAMPLES, KEPT = 4096, 32768
REMEMBERED = 4
FLOAT = ir.DataType.FLOAT
Calls = Sequence[Mapping[str, NDArray[Any]]]


@dataclass(frozen=True)
class Observed:
    """What an activation was over all calls: extremes, some of its values, and by channel its greatest magnitudes where
    they were asked for."""

    low: float
    high: float
    sample: NDArray[np.float32]
    channels: NDArray[np.float32] | None = None


_seen: OrderedDict[tuple[Any, ...], dict[str, Observed]] = OrderedDict()


def observe(
    path: Path,
    names: Sequence[str],
    calls: Calls,
    *,
    channels: Mapping[str, int] | None = None,
    progress: Progress | None = None,
) -> Mapping[str, Observed]:
    """Run the graph on the calls and watch the activations of these names. `channels` are those whose magnitudes are
    wanted by channel, the last axis, with its length. Raises EngineError when the graph does not run.

    The last few answers are kept: a search for the layers to keep asks the same of the same graph each time.
    """
    key = (*_identity(path), *names, *sorted((channels or {}).items()), _digest(calls))
    if key not in _seen:
        _seen[key] = _observe(path, names, calls, channels or {}, progress)
        while len(_seen) > REMEMBERED:
            _seen.popitem(last=False)
    _seen.move_to_end(key)
    return _seen[key]


def _identity(path: Path) -> tuple[Any, ...]:
    status = path.stat()
    return str(path), status.st_mtime_ns, status.st_size, status.st_ino


def _digest(calls: Calls) -> str:
    digest = hashlib.sha256()
    for call in calls:
        for name, array in sorted(call.items()):
            digest.update(f"{name} {array.dtype} {array.shape} ".encode())
            digest.update(array.tobytes())
    return digest.hexdigest()


def _observe(
    path: Path, names: Sequence[str], calls: Calls, channels: Mapping[str, int], progress: Progress | None
) -> dict[str, Observed]:
    with _opened(path, names, channels) as session:
        outputs = [output.name for output in session.get_outputs()]
        watched = [name for name in outputs if name.startswith("ingot.watch.")]
        found: list[list[NDArray[Any]]] = [[] for _ in watched]
        taken = {entry.name for entry in session.get_inputs()}
        for number, call in enumerate(calls):
            try:
                answers = session.run(watched, {name: array for name, array in call.items() if name in taken})
            except Exception as error:  # ORT raises a class of its own for each status code, with no common base
                raise EngineError(f"calibration call {number} could not be run: {error}") from error
            for kept, answer in zip(found, answers, strict=True):
                kept.append(answer)
            if progress:
                progress("calibrate", (number + 1) / len(calls))
    by_name = dict(zip(watched, found, strict=True))
    return {name: _merged(by_name, number) for number, name in enumerate(names)}


def limits(
    observed: Observed, method: str, percentile: float, error: Callable[[float, float, NDArray[Any]], float]
) -> tuple[float, float]:
    """The values that an activation's integers should reach from and to. `error` is what rounding to a range costs."""
    low, high, sample = observed.low, observed.high, observed.sample
    if method == "minmax":
        return low, high
    if method == "percentile":
        tail = (100 - percentile) / 2
        ends = np.percentile(sample, [tail, 100 - tail])
        return max(low, float(ends[0])), min(high, float(ends[1]))
    shrunk = np.linspace(1.0, 0.2, 41)
    costs = [error(low * part, high * part, sample) for part in shrunk]
    best = float(shrunk[int(np.argmin(costs))])
    return low * best, high * best


def require_method(method: str, percentile: float) -> None:
    """Raise InputError for a method or percentile that is none."""
    if method not in METHODS:
        raise unknown("calibration method", method, METHODS)
    if not 50 < percentile <= 100:
        raise InputError(f"percentile={percentile}: it must be over 50 and at most 100")


def rounding_error(low: float, high: float, sample: NDArray[Any], *, signed: bool) -> float:
    """The mean square of what rounding to 8 bits between two values does to a sample."""
    scale, zero = integers.activation_scale(low, high, signed=signed)
    ends = (-127, 127) if signed else (0, 255)
    rounded = np.clip(np.rint(sample / scale) + int(zero), *ends)
    return float(np.mean(np.square((rounded - int(zero)) * scale - sample)))


def _merged(found: Mapping[str, list[NDArray[Any]]], number: int) -> Observed:
    def of(what: str) -> list[NDArray[Any]]:
        return found.get(f"ingot.watch.{what}.{number}", [])

    sample = np.concatenate([np.ravel(part) for part in of("sample")])
    if sample.size > KEPT:
        sample = sample[:: sample.size // KEPT + 1]
    strange = np.max(of("nan")) > 0 or not np.isfinite(sample).all()
    low, high = (float(np.min(of("low"))), float(np.max(of("high"))))
    channels = np.max(of("channels"), axis=0) if of("channels") else None
    return Observed(np.nan if strange else low, np.nan if strange else high, sample, channels)


@contextmanager
def _opened(path: Path, names: Sequence[str], channels: Mapping[str, int]) -> Iterator[Any]:
    """A session that answers what is watched. Weights are not copied where they lie beside the graph."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.enable_cpu_mem_arena = False
    options.graph_optimization_level = optimization_level(AUTO, path)
    model = load(path)
    with tempfile.TemporaryDirectory() as folder:
        watched: Any = Path(folder) / "watched.onnx"
        if beside(path, model):
            options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
            model = ir.load(path)  # by relative paths, as ONNX Runtime takes them from that folder
            _watch(model, names, channels)
            watched = ir.to_proto(model).SerializeToString()
        else:
            _watch(model, names, channels)
            save(model, watched, external_bytes=0)
        del model
        try:
            session = ort.InferenceSession(watched, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # as in observe
            raise EngineError(f"{path} could not be opened for calibration: {error}") from error
        yield session


def _watch(model: ir.Model, names: Sequence[str], channels: Mapping[str, int]) -> None:
    graph = model.graph
    values = {value.name: value for value in (*graph.inputs, *(v for node in graph for v in node.outputs))}

    def add(operator: str, inputs: Sequence[ir.Value | None], name: str = "", **attributes: Any) -> ir.Value:
        node = ir.node(operator, inputs, attributes)
        graph.append(node)
        if name:
            node.outputs[0].name, node.outputs[0].type = name, ir.TensorType(FLOAT)
            graph.outputs.append(node.outputs[0])
        return node.outputs[0]

    numbers = _numbers(graph, channels)
    for number, name in enumerate(names):
        wide = add("Cast", [values[name]], to=FLOAT.value)
        flat = add("Reshape", [wide, numbers["all"]])
        # an odd step: sides and channels are even, and an even one would see the same of them over and over
        half = add("Div", [add("Size", [flat]), numbers["twice"]])
        step = add("Add", [add("Mul", [half, numbers["two"]]), numbers["one"]])
        add("ReduceMin", [flat], f"ingot.watch.low.{number}", keepdims=0)
        add("ReduceMax", [flat], f"ingot.watch.high.{number}", keepdims=0)
        # both pass over some NaN, as ONNX Runtime computes them
        unlike = add("Cast", [add("IsNaN", [flat])], to=ir.DataType.UINT8.value)
        add("Cast", [add("ReduceMax", [unlike], keepdims=0)], f"ingot.watch.nan.{number}", to=FLOAT.value)
        ends = [flat, numbers["zero"], numbers["end"], numbers["zero"], step]
        add("Slice", ends, f"ingot.watch.sample.{number}")
        if name in channels:
            shaped = add("Reshape", [add("Abs", [wide]), numbers[f"last {channels[name]}"]])
            add("ReduceMax", [shaped, numbers["zero"]], f"ingot.watch.channels.{number}", keepdims=0)


def _numbers(graph: ir.Graph, channels: Mapping[str, int]) -> dict[str, ir.Value]:
    plain = {"all": [-1], "zero": [0], "one": [1], "two": [2], "twice": [2 * SAMPLES], "end": [2**62]}
    plain |= {f"last {length}": [-1, length] for length in set(channels.values())}
    made = {}
    for key, number in plain.items():
        tensor = ir.tensor(np.array(number, np.int64), name=f"ingot.watch.{key}")
        shape = ir.Shape(np.shape(number))
        value = ir.Value(name=tensor.name, shape=shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
        graph.register_initializer(value)
        made[key] = value
    return made
