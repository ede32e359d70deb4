"""CUDA's runtime in place of a GPU: names and signatures of the real one (a test holds them against it), addresses of real
memory, work that is done when a stream is waited for and not before."""

# ruff: noqa: N801, N802, N803, N815  # the names are CUDA's own

from __future__ import annotations

import ctypes
import enum
import types
from collections.abc import Callable
from typing import Any

import numpy as np


class Cuda:
    """What `_cuda.py` calls of cuda.bindings.runtime, with every call recorded."""

    class cudaError_t(enum.IntEnum):
        """Error codes."""

        cudaSuccess = 0
        cudaErrorMemoryAllocation = 2
        cudaErrorNoDevice = 100
        cudaErrorStreamCaptureUnsupported = 900

    class cudaMemcpyKind(enum.IntEnum):
        """Directions of a copy."""

        cudaMemcpyHostToDevice = 1
        cudaMemcpyDeviceToHost = 2

    class cudaStreamCaptureMode(enum.IntEnum):
        """Whose calls a capture watches."""

        cudaStreamCaptureModeThreadLocal = 1

    cudaStreamNonBlocking = 1

    def __init__(self, *gpus: tuple[str, int, int]) -> None:
        self.gpus = gpus
        self.calls: list[str] = []
        self.failing: dict[str, Cuda.cudaError_t] = {}
        self.memory: dict[str, dict[int, np.ndarray]] = {"device": {}, "host": {}}
        self.queue: list[Callable[[], None]] = []
        self.captured: list[Callable[[], None]] | None = None
        self.open = {"stream": 0, "graph": 0, "exec": 0}

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if not name.startswith("cuda") or not callable(value) or isinstance(value, type):
            return value

        def recorded(*arguments: Any) -> tuple[Any, ...]:
            self.calls.append(name)
            if name in self.failing:
                if name == "cudaStreamEndCapture":
                    self.captured = None  # it is over even where it failed
                return (self.failing[name], None)
            found = value(*arguments)
            return (
                self.cudaError_t.cudaSuccess,
                *(found if isinstance(found, tuple) else (found,) if found is not None else ()),
            )

        recorded.__name__ = name
        return recorded

    def cudaGetErrorName(self, error: Any) -> bytes:
        return error.name.encode()

    def cudaGetErrorString(self, error: Any) -> bytes:  # noqa: ARG002
        return b"in words"

    def cudaGetDeviceCount(self) -> int:
        return len(self.gpus)

    def cudaGetDeviceProperties(self, device: int) -> Any:
        name, major, minor = self.gpus[device]
        return types.SimpleNamespace(name=name.encode(), major=major, minor=minor, totalGlobalMem=1 << 33)

    def cudaSetDevice(self, device: int) -> None:
        assert device < len(self.gpus)

    def _allocate(self, where: str, size: int) -> int:
        assert size > 0
        array = np.full(size, 0xAB, np.uint8)  # never zero by luck
        self.memory[where][array.ctypes.data] = array
        return array.ctypes.data

    def cudaMalloc(self, size: int) -> int:
        return self._allocate("device", size)

    def cudaMallocHost(self, size: int) -> int:
        return self._allocate("host", size)

    def cudaFree(self, devPtr: int) -> None:
        del self.memory["device"][devPtr]

    def cudaFreeHost(self, ptr: int) -> None:
        del self.memory["host"][ptr]

    def enqueue(self, work: Callable[[], None]) -> None:
        """Do it when the stream is waited for; keep it where the stream is captured."""
        (self.queue if self.captured is None else self.captured).append(work)

    def cudaMemcpyAsync(self, dst: int, src: int, count: int, kind: Any, stream: Any) -> None:
        sides = ("device", "host") if kind == 1 else ("host", "device")
        for side, address in zip(sides, (dst, src), strict=True):
            assert self.memory[side][address].size >= count
        assert stream == 7
        self.enqueue(lambda: ctypes.memmove(dst, src, count) and None)

    def cudaStreamCreateWithFlags(self, flags: int) -> int:
        assert flags == 1
        self.open["stream"] += 1
        return 7

    def cudaStreamSynchronize(self, stream: Any) -> None:
        assert stream == 7
        assert self.captured is None
        work, self.queue = self.queue, []
        for item in work:
            item()

    def cudaStreamDestroy(self, stream: Any) -> None:
        assert stream == 7
        self.open["stream"] -= 1

    def cudaStreamBeginCapture(self, stream: Any, mode: Any) -> None:
        assert (stream, mode) == (7, 1)
        self.captured = []

    def cudaStreamEndCapture(self, stream: Any) -> list[Any]:
        assert stream == 7
        assert self.captured is not None
        graph, self.captured = self.captured, None
        self.open["graph"] += 1
        return graph

    def cudaGetLastError(self) -> None:
        """Forgets it."""

    def cudaGraphInstantiate(self, graph: Any, flags: int) -> list[Any]:
        assert flags == 0
        self.open["exec"] += 1
        return list(graph)

    def cudaGraphDestroy(self, graph: Any) -> None:  # noqa: ARG002
        self.open["graph"] -= 1

    def cudaGraphExecDestroy(self, graphExec: Any) -> None:  # noqa: ARG002
        self.open["exec"] -= 1

    def cudaGraphLaunch(self, graphExec: Any, stream: Any) -> None:
        assert stream == 7
        self.queue.extend(graphExec)
