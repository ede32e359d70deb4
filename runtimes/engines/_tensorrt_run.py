"""Running an opened plan: buffers that are reused, one stream, one captured graph for as long as the shapes stay."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import EngineError, InputError
from ..signature import Signature
from . import Arrays, fit
from ._cuda import Gpu, Graph, Memory, Stream, Tensor, use
from ._tensorrt_build import LOG, trt
from ._tensorrt_options import outside

_log = logging.getLogger("ingot")

Shapes = tuple[tuple[int, ...], ...]
# What NumPy has a type for, by its name.
DTYPES = {
    trt.DataType.FLOAT: "float32",
    trt.DataType.HALF: "float16",
    trt.DataType.INT64: "int64",
    trt.DataType.INT32: "int32",
    trt.DataType.INT8: "int8",
    trt.DataType.UINT8: "uint8",
    trt.DataType.BOOL: "bool",
}


class TensorRTEngine:
    """A plan, opened. Threads may share it: runs take turns, as there is one context with one set of buffers."""

    def __init__(
        self,
        plan: Any,
        signature: Signature,
        gpu: Gpu,
        *,
        cuda_graph: bool | None = None,
        weight_streaming_budget: int | Literal["auto"] | None = None,
    ) -> None:
        self.signature = signature
        self.most_rows: int | None = None
        self._plan, self._gpu = plan, gpu
        self._lock = threading.Lock()
        self._must_capture = cuda_graph is True
        self._may_capture = cuda_graph is not False
        self._limits = _limits(plan, signature)
        first = signature.inputs[0]
        if first.name in self._limits and first.shape and isinstance(first.shape[0], str):
            self.most_rows = self._limits[first.name][2][0]
        _stream_weights(plan, weight_streaming_budget)
        # The memory that layers work in is ours to give: as much as these shapes need, not the largest of the profile.
        self._context = plan.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        if self._context is None:
            raise LOG.error("TensorRT cannot make an execution context")
        self._stream = Stream()
        self._workspace = Memory()
        self._tensors = {spec.name: Tensor(np.dtype(spec.dtype)) for spec in (*signature.inputs, *signature.outputs)}
        self._shapes: Shapes | None = None
        self._ran = False
        self._graph: Graph | None = None

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        """Compute every output; floats are cast to the plan's own types.

        Raises InputError for shapes outside of the plan's ranges, EngineError with what TensorRT or CUDA say.
        """
        fed = fit(self.signature, inputs)
        with self._lock:
            if self._context is None:
                raise EngineError("the graph was closed; open the bundle again to run it")
            use(self._gpu)
            self._take_shapes({name: np.shape(array) for name, array in fed.items()})
            for name, array in fed.items():
                np.copyto(self._tensors[name].host, array)
            self._launch()
            self._stream.wait()
            return {spec.name: self._tensors[spec.name].host.copy() for spec in self.signature.outputs}

    def close(self) -> None:
        """Free the context, the buffers and the plan."""
        with self._lock:
            if self._context is None:
                return
            use(self._gpu)
            self._drop_graph()
            self._context = self._plan = None  # TensorRT frees by reference count, the context first
            for tensor in self._tensors.values():
                tensor.free()
            self._workspace.free()
            self._stream.free()

    def _take_shapes(self, shapes: dict[str, tuple[int, ...]]) -> None:
        """Make context and buffers ready for inputs of these shapes; nothing to do when they are the last run's."""
        key = tuple(shapes[spec.name] for spec in self.signature.inputs)
        if key == self._shapes:
            return
        self._require_inside(shapes)
        self._drop_graph()
        self._shapes, self._ran = None, False
        for name, shape in shapes.items():
            if not self._context.set_input_shape(name, shape):
                raise LOG.error(f"TensorRT does not take {name!r} as {list(shape)}")
            self._place(name, shape)
        unknown = self._context.infer_shapes()
        if unknown:
            raise LOG.error(f"TensorRT cannot infer shapes without {', '.join(unknown)}")
        for spec in self.signature.outputs:
            self._place(spec.name, tuple(self._context.get_tensor_shape(spec.name)))
        # at least a byte: with none there would be no address to give
        self._workspace.reserve(max(1, int(self._context.update_device_memory_size_for_shapes())))
        self._context.set_device_memory(self._workspace.address, self._workspace.size)
        self._shapes = key

    def _place(self, name: str, shape: tuple[int, ...]) -> None:
        if min(shape, default=0) < 0:
            raise EngineError(
                f"the shape of {name!r} depends on the values of the inputs, {list(shape)}, which Ingot cannot run"
            )
        tensor = self._tensors[name]
        tensor.resize(shape)
        if not self._context.set_tensor_address(name, tensor.address):
            raise LOG.error(f"TensorRT does not take the buffer of {name!r}")

    def _require_inside(self, shapes: dict[str, tuple[int, ...]]) -> None:
        problems = [
            f"{name!r} is {list(shape)}, the plan takes {list(self._limits[name][0])} to {list(self._limits[name][2])}"
            for name, shape in shapes.items()
            if name in self._limits and outside(shape, self._limits[name])
        ]
        if problems:
            raise InputError(
                f"inputs outside of the plan's sizes: {'; '.join(problems)}; the engine's option sizes, such as "
                'sizes={"height": [512, 1024, 1536]}, builds one for others'
            )

    def _launch(self) -> None:
        """Queue a run: plainly the first time with these shapes, which settles what TensorRT defers, captured after."""
        if self._graph is None and self._ran and self._may_capture:
            self._capture()
        if self._graph is not None:
            self._graph.launch(self._stream)
        else:
            self._enqueue()
        self._ran = True

    def _capture(self) -> None:
        try:
            self._graph = self._stream.capture(self._enqueue)
        except EngineError as error:
            if self._must_capture:
                raise
            self._may_capture = False
            LOG.clear()  # what it said of this is not why something later fails
            _log.info("runs without a CUDA graph: %s", error)

    def _enqueue(self) -> None:
        for spec in self.signature.inputs:
            self._tensors[spec.name].upload(self._stream)
        if not self._context.execute_async_v3(int(self._stream.handle)):
            raise LOG.error("TensorRT could not run the plan")
        for spec in self.signature.outputs:
            self._tensors[spec.name].download(self._stream)

    def _drop_graph(self) -> None:
        if self._graph is not None:
            self._graph.free()
        self._graph = None


def _limits(plan: Any, signature: Signature) -> dict[str, list[tuple[int, ...]]]:
    """The smallest, best and largest shape of each input, after holding the plan's tensors against the signature."""
    inputs = {spec.name: spec for spec in signature.inputs}
    specs = {**inputs, **{spec.name: spec for spec in signature.outputs}}
    held = [plan.get_tensor_name(index) for index in range(plan.num_io_tensors)]
    problems = [f"it has no {name!r}" for name in specs if name not in held]
    for name in held:
        if name not in specs:
            problems.append(f"it has {name!r}, which the manifest does not name")
        elif (plan.get_tensor_mode(name) == trt.TensorIOMode.INPUT) != (name in inputs):
            problems.append(f"{name!r} is an input on one side and an output on the other")
        elif DTYPES.get(plan.get_tensor_dtype(name)) != specs[name].dtype:
            problems.append(f"{name!r} is {plan.get_tensor_dtype(name)}, not {specs[name].dtype}")
        elif plan.get_tensor_location(name) != trt.TensorLocation.DEVICE:
            problems.append(f"{name!r} must lie in the host's memory, which Ingot does not do")
    if problems:
        raise EngineError("the plan is not of this graph: " + "; ".join(problems))
    return {name: [tuple(shape) for shape in plan.get_tensor_profile_shape(name, 0)] for name in inputs}


def _stream_weights(plan: Any, budget: int | Literal["auto"] | None) -> None:
    """Say how many bytes of the weights stay on the GPU. Before any context is made, as TensorRT wants it."""
    if budget is None:
        return
    total = int(plan.streamable_weights_size)
    if total == 0:
        raise InputError(
            "weight_streaming_budget: this plan was not built to stream weights (build option weight_streaming)"
        )
    wanted = int(plan.get_weight_streaming_automatic_budget()) if budget == "auto" else budget
    if not isinstance(wanted, int) or wanted < 0:
        raise InputError(f"weight_streaming_budget={budget!r} is neither a number of bytes nor 'auto'")
    plan.weight_streaming_budget_v2 = min(wanted, total)
