"""ONNX Runtime: CPU, and whichever execution providers the installed package has."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from ..errors import EngineError, InputError
from ..signature import Signature
from . import Arrays, fit

DEVICES: dict[str, tuple[str, ...]] = {
    "cpu": ("CPUExecutionProvider",),
    "cuda": ("CUDAExecutionProvider", "CPUExecutionProvider"),
    "tensorrt": ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"),
    "openvino": ("OpenVINOExecutionProvider", "CPUExecutionProvider"),
    "coreml": ("CoreMLExecutionProvider", "CPUExecutionProvider"),
    "directml": ("DmlExecutionProvider", "CPUExecutionProvider"),
}
HOW_TO_GET = {
    "CUDAExecutionProvider": "pip install onnxruntime-gpu in place of onnxruntime",
    "TensorrtExecutionProvider": "pip install onnxruntime-gpu in place of onnxruntime",
    "OpenVINOExecutionProvider": "pip install onnxruntime-openvino in place of onnxruntime",
    "DmlExecutionProvider": "pip install onnxruntime-directml in place of onnxruntime",
    "CoreMLExecutionProvider": "part of onnxruntime on macOS",
}


class OnnxEngine:
    """One inference session. Safe to run from several threads at once."""

    def __init__(self, session: ort.InferenceSession, signature: Signature) -> None:
        self.session = session
        self.signature = signature
        self._outputs = [spec.name for spec in signature.outputs]

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        """Compute every output; floats are cast to the graph's own precision."""
        fed = fit(self.signature, inputs)
        try:
            found = self.session.run(self._outputs, fed)
        except Exception as error:  # ORT raises a class of its own for each status code, with no common base
            shapes = {name: list(array.shape) for name, array in fed.items()}
            raise EngineError(f"ONNX Runtime could not run the graph on {shapes}: {error}") from error
        return {name: np.asarray(array) for name, array in zip(self._outputs, found, strict=True)}


def open_graph(
    file: Path,
    signature: Signature,
    *,
    device: str | None = None,
    providers: Sequence[str | tuple[str, dict[str, Any]]] | None = None,
    threads: int | None = None,
    arena: bool = True,
    session_options: ort.SessionOptions | None = None,
) -> OnnxEngine:
    """Open a model file.

    `device` (cpu, cuda, tensorrt, openvino, coreml, directml) or `providers` as ONNX Runtime takes them; `threads` inside
    an operator, `arena` whether the CPU allocator keeps freed memory; `session_options` replaces both of the last.
    Raises EngineError when a provider is not in the installed package, or when the file is not a graph it can open.
    """
    chosen = list(providers) if providers is not None else list(_providers_for(device or "cpu"))
    if not chosen:
        raise InputError("providers is empty; name at least one, such as CPUExecutionProvider")
    _require(chosen)
    options = session_options or _options(threads, arena)
    try:
        # without fallback: a CUDA library that does not load must not turn into a silent run on the CPU
        session = ort.InferenceSession(os.fspath(file), options, providers=chosen, enable_fallback=0)
    except Exception as error:  # as in run: no common base class
        raise EngineError(f"ONNX Runtime {ort.__version__} cannot open {file}: {error}") from error
    wanted = chosen[0] if isinstance(chosen[0], str) else chosen[0][0]
    if wanted not in session.get_providers():
        raise EngineError(
            f"ONNX Runtime could not start {wanted}; the session has only {', '.join(session.get_providers())}"
        )
    return OnnxEngine(session, signature)


def report() -> dict[str, str]:
    """The version, the providers that are here, and the package for each that is not."""
    here = ort.get_available_providers()
    missing = {name: f"not here: {how}" for name, how in HOW_TO_GET.items() if name not in here}
    return {"version": ort.__version__, **dict.fromkeys(here, "available"), **missing}


def _providers_for(device: str) -> tuple[str, ...]:
    if device not in DEVICES:
        raise InputError(f"unknown device {device!r} for ONNX Runtime; available: {', '.join(DEVICES)}")
    return DEVICES[device]


def _require(chosen: Sequence[str | tuple[str, dict[str, Any]]]) -> None:
    here = ort.get_available_providers()
    names = [entry if isinstance(entry, str) else entry[0] for entry in chosen]
    missing = [f"{name} ({HOW_TO_GET.get(name, 'not known to Ingot')})" for name in names if name not in here]
    if missing:
        raise EngineError(f"this onnxruntime has no {', '.join(missing)}; it has: {', '.join(here)}")


def _options(threads: int | None, arena: bool) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.enable_cpu_mem_arena = arena
    if threads is not None:
        if threads < 1:
            raise InputError(f"threads={threads}: a session needs at least 1")
        options.intra_op_num_threads = threads
    return options
