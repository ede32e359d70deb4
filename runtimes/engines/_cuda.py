"""CUDA's runtime through cuda-bindings: memory on both sides, a stream, a captured graph. Every call is checked."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from cuda.bindings import runtime as rt
from numpy.typing import NDArray

from ..errors import EngineError


@dataclass(frozen=True)
class Gpu:
    """A device: its number, marketing name, compute capability (`9.0`) and memory in bytes."""

    index: int
    name: str
    compute_capability: str
    memory: int


def call(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a runtime function answers behind its error code. Raises EngineError with the code's name and sentence."""
    code, *values = function(*arguments)
    if code != rt.cudaError_t.cudaSuccess:
        words = [_text(ask(code)[1]) for ask in (rt.cudaGetErrorName, rt.cudaGetErrorString)]
        raise EngineError(f"CUDA: {function.__name__}: {': '.join(words)}")
    return values[0] if len(values) == 1 else tuple(values)


def gpus() -> list[Gpu]:
    """The GPUs of this machine; none without a driver."""
    try:
        count = call(rt.cudaGetDeviceCount)
    except (EngineError, RuntimeError):  # no GPU, a driver that is too old; the bindings' own error: no driver library
        return []
    found = []
    for index in range(count):
        props = call(rt.cudaGetDeviceProperties, index)
        found.append(Gpu(index, _text(props.name), f"{props.major}.{props.minor}", int(props.totalGlobalMem)))
    return found


def use(gpu: Gpu) -> None:
    """Make a GPU the calling thread's. Each thread has its own, 0 until it says another."""
    call(rt.cudaSetDevice, gpu.index)


class Memory:
    """A stretch of memory that grows and is reused: on the GPU, or pinned on the host, where copies can be asynchronous."""

    def __init__(self, *, pinned: bool = False) -> None:
        self._allocate, self._release = (rt.cudaMallocHost, rt.cudaFreeHost) if pinned else (rt.cudaMalloc, rt.cudaFree)
        self.address = 0
        self.size = 0

    def reserve(self, size: int) -> None:
        """Have at least this many bytes; what was in it is lost where it grows."""
        if size > self.size:
            self.free()
            self.address = int(call(self._allocate, size))
            self.size = size

    def free(self) -> None:
        """Give the memory back."""
        if self.address:
            call(self._release, self.address)
        self.address = self.size = 0


class Tensor:
    """An array on the GPU with its pinned twin on the host; both are reused while the shape changes."""

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self.dtype = dtype
        self._device, self._pinned = Memory(), Memory(pinned=True)
        self.host: NDArray[Any] = np.empty(0, dtype)

    @property
    def address(self) -> int:
        """Where it lies on the GPU."""
        return self._device.address

    def resize(self, shape: tuple[int, ...]) -> None:
        """Take a shape; `host` is then an array of it."""
        size = max(1, math.prod(shape) * self.dtype.itemsize)  # TensorRT wants an address for an empty tensor too
        self._device.reserve(size)
        self._pinned.reserve(size)
        raw: Any = (ctypes.c_uint8 * size).from_address(self._pinned.address)
        self.host = np.frombuffer(raw, self.dtype, math.prod(shape)).reshape(shape)

    def upload(self, stream: Stream) -> None:
        """Queue the copy from the host to the GPU."""
        kind = rt.cudaMemcpyKind.cudaMemcpyHostToDevice
        call(rt.cudaMemcpyAsync, self.address, self._pinned.address, self.host.nbytes, kind, stream.handle)

    def download(self, stream: Stream) -> None:
        """Queue the copy from the GPU to the host."""
        kind = rt.cudaMemcpyKind.cudaMemcpyDeviceToHost
        call(rt.cudaMemcpyAsync, self._pinned.address, self.address, self.host.nbytes, kind, stream.handle)

    def free(self) -> None:
        """Give both sides back."""
        self.host = np.empty(0, self.dtype)
        self._device.free()
        self._pinned.free()


class Stream:
    """A queue of work on the GPU, independent of the default stream."""

    def __init__(self) -> None:
        self.handle = call(rt.cudaStreamCreateWithFlags, rt.cudaStreamNonBlocking)

    def wait(self) -> None:
        """Block until everything queued is done. Raises EngineError for what failed on the way."""
        call(rt.cudaStreamSynchronize, self.handle)

    def capture(self, enqueue: Callable[[], None]) -> Graph:
        """Record what `enqueue` queues in place of running it.

        Only this thread's calls are watched, so that another one may allocate meanwhile.
        """
        call(rt.cudaStreamBeginCapture, self.handle, rt.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal)
        try:
            enqueue()
        except BaseException:
            self._abandon()
            raise
        graph = call(rt.cudaStreamEndCapture, self.handle)
        try:
            return Graph(call(rt.cudaGraphInstantiate, graph, 0))
        finally:
            call(rt.cudaGraphDestroy, graph)

    def _abandon(self) -> None:
        """End a capture whose error is being raised already, and leave none behind for TensorRT to find."""
        code, graph = rt.cudaStreamEndCapture(self.handle)
        if code == rt.cudaError_t.cudaSuccess and graph is not None:
            call(rt.cudaGraphDestroy, graph)
        rt.cudaGetLastError()

    def free(self) -> None:
        """Give the queue back."""
        call(rt.cudaStreamDestroy, self.handle)


class Graph:
    """Captured work: the same kernels on the same addresses, launched with one call."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    def launch(self, stream: Stream) -> None:
        """Queue all of it."""
        call(rt.cudaGraphLaunch, self._handle, stream.handle)

    def free(self) -> None:
        """Give it back."""
        call(rt.cudaGraphExecDestroy, self._handle)


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
