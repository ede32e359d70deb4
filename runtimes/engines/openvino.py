"""OpenVINO: CPUs, and Intel's GPUs and NPUs where their drivers are."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import EngineError
from ..signature import Signature
from . import Arrays, fit
from ._openvino import configuration, core, plugin, present, resized, take_float_timestep
from ._openvino_import import ov
from ._openvino_weights import exchange, named_weights
from ._weights import Change

PARITY_OPTIONS: dict[str, Any] = {"inference_precision": "f32"}
HOW_TO_GET = {
    "gpu": "an Intel GPU with its OpenCL driver (intel-opencl-icd)",
    "npu": "an Intel NPU with its driver (intel-level-zero-npu)",
}


@dataclass(frozen=True)
class Origin:
    """What a graph was compiled from, to compile it again: `read` reads the file and fits it to its signature."""

    file: Path
    device: str
    settings: Mapping[str, Any]
    read: Callable[[], ov.Model]

    def compiled(self, changes: Mapping[str, Change]) -> ov.CompiledModel:
        """The graph, compiled with these weights changed. Raises EngineError."""
        settings = dict(self.settings)
        if changes:
            settings.pop("CACHE_DIR", None)  # what is kept there was compiled from the file's own weights
        try:
            model = self.read()
            exchange(model, changes)
            return core().compile_model(model, self.device, settings)
        except RuntimeError as error:
            raise EngineError(f"OpenVINO {ov.__version__} cannot open {self.file} on {self.device}: {error}") from error


class OpenVinoEngine:
    """One compiled graph, and as many infer requests as threads have run it at once.

    Inputs are read where they lie. Outputs are written straight into the caller's arrays where the graph fixes their
    shapes, and else copied once out of the request, which the next run overwrites: OpenVINO 2026.4.1 cannot make an output
    that was bound to an array larger again.
    """

    def __init__(self, compiled: ov.CompiledModel, signature: Signature, origin: Origin | None = None) -> None:
        self.signature = signature
        self.changed = False
        self._origin = origin
        self._compiled: ov.CompiledModel | None = compiled
        self._idle: list[ov.InferRequest] = []
        self._lock = threading.Lock()
        self._fixed = all(port.get_partial_shape().is_static for port in compiled.outputs)

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        """Compute every output; floats are cast to the graph's own precision."""
        fed = fit(self.signature, inputs)
        # shared memory must be contiguous, and OpenVINO asks that it could be written to
        held = {name: np.require(array, requirements=("C", "W")) for name, array in fed.items()}
        compiled, request = self._take()
        try:
            for name, array in held.items():
                request.set_tensor(name, ov.Tensor(array, shared_memory=True))
            return self._infer(request)
        except RuntimeError as error:
            shapes = {name: list(array.shape) for name, array in held.items()}
            raise EngineError(f"OpenVINO could not run the graph on {shapes}: {error}") from error
        finally:
            with self._lock:
                if self._compiled is compiled:  # neither closed nor exchanged meanwhile
                    self._idle.append(request)

    def close(self) -> None:
        """Free the compiled graph and its requests."""
        with self._lock:
            self._compiled = None
            self._idle.clear()

    def weights(self) -> dict[str, tuple[int, ...]]:
        """The float weights by the checkpoint's names, with its shapes."""
        model = self._opened_from().read()
        return {name: tuple(node.get_output_shape(0)) for name, node in named_weights(model).items()}

    def with_weights(self, changes: Mapping[str, Change]) -> Callable[[], None]:
        """Compile the file again with these weights changed; what is returned puts the new graph in place."""
        compiled = self._opened_from().compiled(changes)

        def take_effect() -> None:
            with self._lock:
                if self._compiled is not None:
                    self._compiled, self.changed = compiled, bool(changes)
                    self._idle.clear()

        return take_effect

    def _opened_from(self) -> Origin:
        if self._origin is None or self._compiled is None:
            raise EngineError(
                "the graph was closed, or not opened from a file; open the bundle again to change weights"
            )
        return self._origin

    def _infer(self, request: ov.InferRequest) -> Arrays:
        names = [spec.name for spec in self.signature.outputs]
        if not self._fixed:
            request.infer()
            return {name: request.get_tensor(name).data.copy() for name in names}
        tensors = [request.get_tensor(name) for name in names]
        made = {
            name: np.empty(tuple(tensor.shape), tensor.data.dtype) for name, tensor in zip(names, tensors, strict=True)
        }
        for name, array in made.items():
            request.set_tensor(name, ov.Tensor(array, shared_memory=True))
        request.infer()
        return made

    def _take(self) -> tuple[ov.CompiledModel, ov.InferRequest]:
        with self._lock:
            if self._compiled is None:
                raise EngineError("this graph was closed; open it again")
            return self._compiled, self._idle.pop() if self._idle else self._compiled.create_infer_request()


def open_graph(
    file: Path,
    signature: Signature,
    *,
    stored: Mapping[str, Any] = MappingProxyType({}),
    device: str | None = None,
    performance_hint: str | None = None,
    streams: int | None = None,
    threads: int | None = None,
    inference_precision: str | None = None,
    cache_dir: str | Path | None = None,
    sizes: Mapping[str, int] | None = None,
    properties: Mapping[str, Any] | None = None,
) -> OpenVinoEngine:
    """Open an `openvino_model.xml`; its weights stay on disk and are mapped as they are used.

    `device` is cpu, gpu, gpu.1, npu, or auto; `performance_hint` latency, throughput or cumulative_throughput; `streams`
    run at once and `threads` in all; `inference_precision` f32, bf16 or f16, by default the device's own; `cache_dir` a
    folder for compiled graphs, from which the next load is quick; `sizes` fixes dimensions of the graph by their names,
    such as `{"batch": 2, "height": 512, "width": 512}` (rows of each graph, pixels); `properties` are OpenVINO's own, and
    go before all others. Raises InputError for values that cannot be used, EngineError for a device that is not here and
    a graph that the device refuses.
    """
    name = plugin(device or "cpu")
    settings = configuration(
        name, performance_hint=performance_hint, streams=streams, threads=threads, precision=inference_precision,
        cache_dir=cache_dir, keep_float32=bool(stored.get("keep_float32")),
    )  # fmt: skip
    wanted = resized(signature, sizes or {})

    def read() -> ov.Model:
        model = core().read_model(file)
        take_float_timestep(model, signature)
        if sizes:
            model.reshape({spec.name: [-1 if isinstance(d, str) else d for d in spec.shape] for spec in wanted.inputs})
        return model

    origin = Origin(file, name, {**settings, **(properties or {})}, read)
    return OpenVinoEngine(origin.compiled({}), wanted, origin)


def devices() -> list[str]:
    """The devices of this machine, the CPU last, then `auto`, which picks among them."""
    return [*sorted(present(), key=lambda name: (name == "cpu", name)), "auto"]


def computing_precisions() -> dict[str, dict[str, Any]]:
    """The precisions below float32 that a CPU with instructions for them computes in by itself, and how to ask for each."""
    able = core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    known = {"BF16": ("bfloat16", "bf16"), "FP16": ("float16", "f16")}
    return {name: {"inference_precision": hint} for flag, (name, hint) in known.items() if flag in able}


def report() -> dict[str, str]:
    """The version, each device with its name, and what the missing ones need."""
    here = {name: str(core().get_property(name.upper(), "FULL_DEVICE_NAME")) for name in present()}
    missing = {
        name: f"not here: {how}" for name, how in HOW_TO_GET.items() if not any(one.startswith(name) for one in here)
    }
    return {"version": ov.__version__, **here, **missing}
