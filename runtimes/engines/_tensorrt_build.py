"""From an ONNX graph to a TensorRT plan, on the GPU that it is for."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import EngineError
from ..signature import Signature
from ._tensorrt_options import BuildOptions, profile

try:
    import tensorrt as trt
except ModuleNotFoundError:
    raise
except ImportError as error:  # the package is there, a library of it or of CUDA is not
    raise EngineError(f"TensorRT is installed, but its libraries do not load: {error}") from error

__all__ = ["LOG", "Log", "Monitor", "Progress", "build", "trt"]

_log = logging.getLogger("ingot")

Progress = Callable[[str, float], None]
FLAGS = {
    "refit": trt.BuilderFlag.REFIT,
    "weight_streaming": trt.BuilderFlag.WEIGHT_STREAMING,
    "version_compatible": trt.BuilderFlag.VERSION_COMPATIBLE,
}
HARDWARE = {
    "none": trt.HardwareCompatibilityLevel.NONE,
    "ampere_plus": trt.HardwareCompatibilityLevel.AMPERE_PLUS,
    "same_compute_capability": trt.HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY,
}


class Log(trt.ILogger):  # type: ignore[misc]  # TensorRT's classes come without types
    """TensorRT's messages: errors are kept for the exception that they explain, warnings go to the logger "ingot"."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)  # pybind11 wants it by this name
        self._errors: deque[str] = deque(maxlen=20)
        self._lock = threading.Lock()

    def log(self, severity: Any, msg: str) -> None:
        """Called by TensorRT, from any of its threads."""
        if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
            with self._lock:
                self._errors.append(msg)
        elif severity == trt.ILogger.Severity.WARNING:
            _log.info("TensorRT: %s", msg)

    def clear(self) -> None:
        """Forget the errors of something whose failure does not matter."""
        with self._lock:
            self._errors.clear()

    def error(self, what: str, *more: str) -> EngineError:
        """The error for something that failed, with all that TensorRT said since the last one."""
        with self._lock:
            said = [*more, *self._errors]
            self._errors.clear()
        return EngineError(f"{what}: {'; '.join(said) or 'it does not say why'}")


# One for the process: TensorRT keeps the first that it gets for its global registry and warns of every other one.
LOG = Log()


def build(
    graph: Path,
    signature: Signature,
    options: BuildOptions,
    *,
    timing: bytes = b"",
    progress: Progress | None = None,
) -> tuple[bytes, bytes]:
    """The plan of a graph file, and the timing cache that building it filled.

    Precision lies in the graph: networks are strongly typed. Takes minutes for a large model. Raises EngineError with
    what TensorRT says of a graph that it cannot read or build.
    """
    builder = trt.Builder(LOG)
    # 11 types every network strongly and ignores the flag; 10 needs it
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, LOG)
    if not parser.parse_from_file(str(graph)):
        problems = [_describe(parser.get_error(index)) for index in range(parser.num_errors)]
        raise LOG.error(f"TensorRT {trt.__version__} cannot read {graph}", *problems)
    config = _configured(builder, signature, options)
    cache = _timing_cache(config, timing)
    if progress:
        config.progress_monitor = Monitor(progress)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise LOG.error(f"TensorRT {trt.__version__} cannot build a plan of {graph}")
    return bytes(plan), bytes(cache.serialize())


def _timing_cache(config: Any, timing: bytes) -> Any:
    """Earlier builds' timings, attached; an empty cache where they are another GPU's or version's."""
    for content in (timing, b""):
        cache = config.create_timing_cache(content)
        if cache is not None and config.set_timing_cache(cache, ignore_mismatch=False):
            return cache
    raise LOG.error("TensorRT takes no timing cache")


def _configured(builder: Any, signature: Signature, options: BuildOptions) -> Any:
    config = builder.create_builder_config()
    config.builder_optimization_level = options.optimization_level
    config.hardware_compatibility_level = HARDWARE[options.hardware_compatibility]
    for name, flag in FLAGS.items():
        if getattr(options, name):
            config.set_flag(flag)
    if not options.tf32:
        config.clear_flag(trt.BuilderFlag.TF32)
    if options.workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace)
    shapes = profile(signature, options.sizes)
    if shapes:
        ranges = builder.create_optimization_profile()
        for name, (smallest, best, largest) in shapes.items():
            ranges.set_shape(name, smallest, best, largest)
        if config.add_optimization_profile(ranges) < 0:
            raise LOG.error(f"TensorRT does not take the profile {shapes}")
    return config


def _describe(error: Any) -> str:
    return f"{error.node_operator()} {error.node_name()!r}: {error.desc()}"


class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # TensorRT's classes come without types
    """TensorRT's progress as ours: phases that have no parent, by name."""

    def __init__(self, progress: Progress) -> None:
        trt.IProgressMonitor.__init__(self)
        self._progress = progress
        self._steps: dict[str, int] = {}

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        """A phase begins."""
        if not parent_phase:
            self._steps[phase_name] = max(1, num_steps)

    def step_complete(self, phase_name: str, step: int) -> bool:
        """A step of a phase is done; the answer tells TensorRT to go on."""
        if phase_name in self._steps:
            self._progress(phase_name, min(1.0, (step + 1) / self._steps[phase_name]))
        return True

    def phase_finish(self, phase_name: str) -> None:
        """A phase ends."""
        if self._steps.pop(phase_name, None):
            self._progress(phase_name, 1.0)
