"""ONNX Runtime: CPU, and whichever execution providers the installed package has."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from ..errors import EngineError, InputError
from ..signature import Signature
from . import Arrays, fit
from ._onnx_level import AUTO, optimization_level
from ._onnx_providers import HOW_TO_GET, Provider, devices, providers_for, require
from ._onnx_session import Origin, open_session
from ._sizes import resized
from ._weights import Change

__all__ = ["PARITY_OPTIONS", "OnnxEngine", "devices", "open_graph", "report"]

# tf32 is a GPU's; a few calls are not worth the layout that many are
PARITY_OPTIONS: dict[str, Any] = {"tf32": False, "graph_optimization_level": AUTO}
# Sets of buffers that are kept, one for each combination of input shapes that was run last.
KEPT_SHAPES = 4
SPIN_US = 1000  # how long a thread without work looks for some before it sleeps


@dataclass
class Bound:
    """Device buffers for one combination of input shapes: filled again and again, never made again."""

    number: int
    inputs: dict[str, Any]
    outputs: list[Any] = field(default_factory=list)


class OnnxEngine:
    """One inference session. Safe to run from several threads at once; with `io_binding` they take turns.

    With `io_binding`, (device, number) as ONNX Runtime names them, inputs and outputs lie in buffers on the device that
    later runs with equal shapes use again, as a captured CUDA graph needs it.
    """

    def __init__(
        self,
        session: ort.InferenceSession,
        signature: Signature,
        *,
        io_binding: tuple[str, int] | None = None,
        cuda_graph: bool = False,
        origin: Origin | None = None,
    ) -> None:
        self.session: Any = session
        self.changed = False
        self._origin = origin
        self.signature = signature
        self._outputs = [spec.name for spec in signature.outputs]
        self._place = io_binding
        self._graphs = cuda_graph
        self._lock = threading.Lock()
        self._bound: OrderedDict[tuple[tuple[int, ...], ...], Bound] = OrderedDict()
        self._made = 0

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        """Compute every output; floats are cast to the graph's own precision."""
        session = self.session  # a close meanwhile does not take it from under this run
        if session is None:
            raise EngineError("the graph was closed; open the bundle again to run it")
        fed = fit(self.signature, inputs)
        try:
            if self._place is None:
                found = session.run(self._outputs, fed)
            else:
                with self._lock:
                    found = self._run_bound(session, fed, *self._place)
                    if self.session is None:  # closed while this run waited or ran
                        self._bound.clear()
        except Exception as error:  # ORT raises a class of its own for each status code, with no common base
            shapes = {name: list(array.shape) for name, array in fed.items()}
            raise EngineError(f"ONNX Runtime could not run the graph on {shapes}: {error}") from error
        return {name: np.asarray(array) for name, array in zip(self._outputs, found, strict=True)}

    def close(self) -> None:
        """Forget the session and its buffers."""
        with self._lock:
            self._bound.clear()
            self.session = None

    def weights(self) -> dict[str, tuple[int, ...]]:
        """The float weights by the checkpoint's names, with its shapes."""
        return {name: stored[0].shape for name, stored in self._reopened().weights().items()}

    def with_weights(self, changes: Mapping[str, Change]) -> Callable[[], None]:
        """Open the file again with these weights changed; what is returned puts the new session in place."""
        session = self._reopened().session(changes)

        def take_effect() -> None:
            with self._lock:
                if self.session is not None:
                    self.session, self.changed = session, bool(changes)
                    self._bound.clear()

        return take_effect

    def _reopened(self) -> Origin:
        if self._origin is None or self.session is None:
            raise EngineError(
                "the graph was closed, or not opened from a file; open the bundle again to change weights"
            )
        return self._origin

    def _run_bound(self, session: Any, fed: Arrays, device: str, number: int) -> list[NDArray[Any]]:
        bound = self._buffers(fed, device, number)
        binding = session.io_binding()
        for name, value in bound.inputs.items():
            binding.bind_ortvalue_input(name, value)
        for index, name in enumerate(self._outputs):
            if bound.outputs:
                binding.bind_ortvalue_output(name, bound.outputs[index])
            else:  # the first run with these shapes finds out how large they are
                binding.bind_output(name, device, number)
        options = ort.RunOptions()
        if self._graphs:  # one captured graph for each set of buffers
            options.add_run_config_entry("gpu_graph_id", str(bound.number))
        session.run_with_iobinding(binding, options)
        bound.outputs = bound.outputs or list(binding.get_outputs())
        # numpy() copies from a GPU and gives a view of the CPU's memory, which the next run overwrites
        return [value.numpy().copy() if device == "cpu" else value.numpy() for value in bound.outputs]

    def _buffers(self, fed: Arrays, device: str, number: int) -> Bound:
        key = tuple(fed[spec.name].shape for spec in self.signature.inputs)
        arrays = {name: np.ascontiguousarray(array).reshape(array.shape) for name, array in fed.items()}
        if key in self._bound:
            self._bound.move_to_end(key)
            for name, value in self._bound[key].inputs.items():
                value.update_inplace(arrays[name])
        else:
            self._made += 1
            # an OrtValue on the CPU takes the array itself, which is the caller's
            values = {
                name: ort.OrtValue.ortvalue_from_numpy(array.copy(), device, number) for name, array in arrays.items()
            }
            self._bound[key] = Bound(self._made, values)
            if len(self._bound) > KEPT_SHAPES:
                self._bound.popitem(last=False)
        return self._bound[key]


def open_graph(
    file: Path,
    signature: Signature,
    *,
    stored: Mapping[str, Any] = MappingProxyType({}),  # noqa: ARG001  # of all engines; a model file says all itself
    device: str | None = None,
    providers: Sequence[Provider] | None = None,
    threads: int | None = None,
    arena: bool = True,
    graph_optimization_level: str | None = None,
    session_options: ort.SessionOptions | None = None,
    io_binding: bool | None = None,
    tf32: bool | None = None,
    cuda_graph: bool = False,
    sizes: Mapping[str, Any] | None = None,
    cache: str | Path | None = None,
    provider_options: Mapping[str, Any] | None = None,
) -> OnnxEngine:
    """Open a model file.

    `device` (cpu, cuda, cuda:1, tensorrt, openvino, coreml, directml) or `providers` as ONNX Runtime takes them; `threads`
    inside an operator, `arena` whether the CPU allocator keeps freed memory; `graph_optimization_level` is "disable", "basic",
    "extended", "all" (as for None), or "auto": "extended" for more than a gibibyte of weights, which then open in a fraction of the
    time and stay where their file is mapped, and "all" for fewer; `session_options` replaces these three.

    `sizes`, such as `{"batch": 2, "height": 512, "width": 512}`, fixes dimensions by their names: one file serves several
    fixed sizes, each opened for itself. For the device tensorrt they are the ranges of shapes that its engine is built for.

    On NVIDIA GPUs: `io_binding` keeps inputs and outputs in device buffers that are reused (None: on cuda and tensorrt);
    `tf32` whether float32 products may be rounded to it (None: ONNX Runtime's default, yes); `cuda_graph` captures and
    replays the run, for graphs that lie on the GPU whole; `cache` is the folder of engines that the TensorRT
    provider builds; `provider_options` are the provider's own, by ONNX Runtime's names, such as
    `{"gpu_mem_limit": 8 << 30, "arena_extend_strategy": "kSameAsRequested", "cudnn_conv_algo_search": "HEURISTIC"}`.

    Raises InputError for an unknown device, option or size, EngineError when a provider is not in the installed package, or when
    the file is not a graph it can open.
    """
    place = _place(device, io_binding)
    if cuda_graph and (place is None or place[0] != "cuda"):
        raise InputError("cuda_graph needs the device cuda or tensorrt and io_binding")
    chosen = (
        list(providers)
        if providers is not None
        else providers_for(
            device or "cpu",
            signature,
            tf32=tf32,
            cuda_graph=cuda_graph,
            sizes=sizes,
            cache=cache,
            provider_options=provider_options,
        )
    )
    if not chosen:
        raise InputError("providers is empty; name at least one, such as CPUExecutionProvider")
    require(chosen)
    given, fixed = signature, signature
    if sizes and not _is_tensorrt(chosen):
        if session_options is not None:
            raise InputError(
                "sizes would change the session_options that are given; call its add_free_dimension_override_by_name"
            )
        fixed = resized(signature, sizes)

    on_cpu = list(chosen) == ["CPUExecutionProvider"]
    level = optimization_level(graph_optimization_level, file if on_cpu else None)

    def options() -> ort.SessionOptions:
        return _fix(_options(threads, arena, on_cpu, level), given, fixed)

    origin = Origin(file, chosen, options if session_options is None else None)
    session = open_session(file, chosen, session_options or options())
    binding = place if providers is None or io_binding else None
    return OnnxEngine(session, fixed, io_binding=binding, cuda_graph=cuda_graph, origin=origin)


def report() -> dict[str, str]:
    """The version, the providers that are here, and the package for each that is not."""
    here = ort.get_available_providers()
    missing = {name: f"not here: {how}" for name, how in HOW_TO_GET.items() if name not in here}
    return {"version": ort.__version__, **dict.fromkeys(here, "available"), **missing}


def _is_tensorrt(chosen: Sequence[Provider]) -> bool:
    first = chosen[0] if isinstance(chosen[0], str) else chosen[0][0]
    return first == "TensorrtExecutionProvider"


def _fix(options: ort.SessionOptions, signature: Signature, fixed: Signature) -> ort.SessionOptions:
    """Have the session take numbers for the dimensions that the fixed signature has them for."""
    for named, numbered in zip(signature.inputs, fixed.inputs, strict=True):
        for dim, number in zip(named.shape, numbered.shape, strict=True):
            if isinstance(dim, str) and isinstance(number, int):
                options.add_free_dimension_override_by_name(dim, number)
    return options


def _place(device: str | None, io_binding: bool | None) -> tuple[str, int] | None:
    """Where buffers lie, as ONNX Runtime names it; None without I/O binding."""
    kind, _, number = (device or "cpu").lower().partition(":")
    nvidia = kind in ("cuda", "tensorrt")
    if io_binding is False or (io_binding is None and not nvidia):
        return None
    return "cuda" if nvidia else "cpu", int(number) if number.isdigit() else 0


def _options(threads: int | None, arena: bool, on_cpu: bool, level: Any) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.graph_optimization_level = level
    options.log_severity_level = 3
    options.enable_cpu_mem_arena = arena
    if on_cpu and arena:
        # Measured with 1.31.1 (benchmarks/README.md). Where shapes have names, finding tensors that could share memory
        # beforehand takes more than half of the time that opening takes, and the arena finds as much while it runs. The
        # pattern of a run is one block for all tensors, beside what the arena holds of the run that it was learnt from.
        options.enable_mem_reuse = options.enable_mem_pattern = False
    # By itself ONNX Runtime (1.31.1) has a thread look for work for about 50 ms, as measured on an EPYC: those of graphs that
    # have just been opened, or have just answered, would take the processor from the ones that work. This is longer than a
    # pipeline takes between two steps. Versions that do not know the entry take no notice of it.
    options.add_session_config_entry("session.intra_op.spin_duration_us", str(SPIN_US))
    if threads is not None:
        if threads < 1:
            raise InputError(f"threads={threads}: a session needs at least 1")
        options.intra_op_num_threads = threads
    return options
