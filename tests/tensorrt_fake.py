"""TensorRT in place of a GPU: names and signatures of the real one (a test holds them against it). ONNX Runtime computes."""

from __future__ import annotations

import enum
import importlib.machinery
import json
import math
import types
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from .cuda_fake import Cuda

VERSION = "11.4.0.106"


def _enum(name: str, **members: int) -> Any:
    return enum.IntEnum(name, members)


class TensorRT(types.ModuleType):
    """What our engine and builder call of the module tensorrt. `settings` is how the next calls behave."""

    def __init__(self, cuda: Cuda) -> None:
        super().__init__("tensorrt")
        self.__version__ = VERSION
        self.__spec__ = importlib.machinery.ModuleSpec("tensorrt", None)  # torch asks for every module's
        self.cuda = cuda
        self.built: list[dict[str, Any]] = []
        self.contexts: list[Any] = []
        self.settings: dict[str, Any] = {}
        self.BuilderFlag = _enum("BuilderFlag", REFIT=4, TF32=6, VERSION_COMPATIBLE=12, WEIGHT_STREAMING=20)
        self.HardwareCompatibilityLevel = _enum(
            "HardwareCompatibilityLevel", NONE=0, AMPERE_PLUS=1, SAME_COMPUTE_CAPABILITY=2
        )
        self.DataType = _enum("DataType", FLOAT=0, HALF=1, INT8=2, INT32=3, BOOL=4, UINT8=5, BF16=7, INT64=8)
        self.MemoryPoolType = _enum("MemoryPoolType", WORKSPACE=0)
        self.TensorIOMode = _enum("TensorIOMode", NONE=0, INPUT=1, OUTPUT=2)
        self.TensorLocation = _enum("TensorLocation", DEVICE=0, HOST=1)
        self.NetworkDefinitionCreationFlag = _enum("NetworkDefinitionCreationFlag", STRONGLY_TYPED=0)
        self.ExecutionContextAllocationStrategy = _enum(
            "ExecutionContextAllocationStrategy", STATIC=0, ON_PROFILE_CHANGE=1, USER_MANAGED=2
        )
        self.ILogger, self.IProgressMonitor = ILogger, IProgressMonitor
        self.Builder = lambda logger: Builder(self, logger)
        self.OnnxParser = lambda network, logger: OnnxParser(self, network, logger)
        self.Runtime = lambda logger: Runtime(self, logger)


class ILogger:
    """Messages."""

    Severity = _enum("Severity", INTERNAL_ERROR=0, ERROR=1, WARNING=2, INFO=3, VERBOSE=4)

    def __init__(self) -> None:
        """pybind11's."""


class IProgressMonitor:
    """Progress."""

    def __init__(self) -> None:
        """pybind11's."""


class Builder:
    """Builds."""

    def __init__(self, trt: TensorRT, logger: Any) -> None:
        self._trt, self._logger = trt, logger

    def create_network(self, flags: int = 0) -> Any:
        assert flags == 1
        return types.SimpleNamespace(graph=None)

    def create_builder_config(self) -> IBuilderConfig:
        return IBuilderConfig(self._trt)

    def create_optimization_profile(self) -> IOptimizationProfile:
        return IOptimizationProfile()

    def build_serialized_network(self, network: Any, config: IBuilderConfig) -> bytes | None:
        if self._trt.settings.get("build") is False:
            self._logger.log(ILogger.Severity.ERROR, "Error Code 10: no implementation for node")
            return None
        self._logger.log(ILogger.Severity.WARNING, "slow tactic")
        if config.progress_monitor:
            config.progress_monitor.phase_start("Building", None, 2)
            config.progress_monitor.phase_start("Tactics", "Building", 9)
            assert config.progress_monitor.step_complete("Building", 0)
            assert config.progress_monitor.step_complete("Tactics", 0)
            config.progress_monitor.phase_finish("Tactics")
            config.progress_monitor.phase_finish("Building")
        assert config.cache is not None
        config.cache.content += b"timed "
        plan = {
            "graph": str(network.graph),
            "profile": config.profile.shapes if config.profile else {},
            **config.plain(),
        }
        self._trt.built.append(plan)
        return json.dumps(plan).encode()


class IBuilderConfig:
    """Settings of a build."""

    def __init__(self, trt: TensorRT) -> None:
        self._trt = trt
        self.builder_optimization_level = 3
        self.hardware_compatibility_level: Any = None
        self.progress_monitor: Any = None
        self.flags = {trt.BuilderFlag.TF32}
        self.workspace: int | None = None
        self.profile: IOptimizationProfile | None = None
        self.cache: ITimingCache | None = None

    def plain(self) -> dict[str, Any]:
        flags = sorted(flag.name for flag in self.flags)
        hardware = self.hardware_compatibility_level.name
        return {
            "level": self.builder_optimization_level,
            "flags": flags,
            "hardware": hardware,
            "workspace": self.workspace,
        }

    def set_flag(self, flag: Any) -> None:
        self.flags.add(flag)

    def clear_flag(self, flag: Any) -> None:
        self.flags.discard(flag)

    def set_memory_pool_limit(self, pool: Any, pool_size: int) -> None:
        assert pool == 0
        self.workspace = pool_size

    def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache | None:
        return None if self._trt.settings.get("timing") is False else ITimingCache(serialized_timing_cache)

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        self.cache = cache
        return not cache.content.startswith(b"foreign")

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        self.profile = profile
        return -1 if self._trt.settings.get("profile") is False else 0


class ITimingCache:
    """Timings."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    def serialize(self) -> bytes:
        return self.content


class IOptimizationProfile:
    """Ranges of shapes."""

    def __init__(self) -> None:
        self.shapes: dict[str, Any] = {}

    def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:  # TensorRT's names
        self.shapes[input] = [list(min), list(opt), list(max)]


class OnnxParser:
    """Reads the graph, which must be one that ONNX Runtime opens too."""

    def __init__(self, trt: TensorRT, network: Any, logger: Any) -> None:
        self._network, self._errors = network, trt.settings.get("parser", [])
        assert isinstance(logger, ILogger)

    def parse_from_file(self, model: str) -> bool:
        self._network.graph = model
        return Path(model).exists() and not self._errors

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, index: int) -> Any:
        return ParserError(*self._errors[index])


class ParserError:
    """An operator that the parser does not read."""

    def __init__(self, operator: str, name: str, description: str) -> None:
        self._said = operator, name, description

    def node_operator(self) -> str:
        return self._said[0]

    def node_name(self) -> str:
        return self._said[1]

    def desc(self) -> str:
        return self._said[2]


class Runtime:
    """Opens plans."""

    def __init__(self, trt: TensorRT, logger: Any) -> None:
        self._trt, self._logger = trt, logger
        self.engine_host_code_allowed = False

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
        try:
            plan = json.loads(serialized_engine)
        except ValueError:
            self._logger.log(ILogger.Severity.INTERNAL_ERROR, "magic tag does not match")
            return None
        assert self.engine_host_code_allowed == ("VERSION_COMPATIBLE" in plan["flags"])
        return ICudaEngine(self._trt, plan)


class ICudaEngine:
    """A plan, opened; computed by ONNX Runtime."""

    def __init__(self, trt: TensorRT, plan: dict[str, Any]) -> None:
        self._trt, self.plan = trt, plan
        self.session = ort.InferenceSession(plan["graph"], providers=["CPUExecutionProvider"])
        self.inputs = {tensor.name: tensor for tensor in self.session.get_inputs()}
        self.outputs = {tensor.name: tensor for tensor in self.session.get_outputs()}
        self.streamable_weights_size = 1000 if "WEIGHT_STREAMING" in plan["flags"] else 0
        self.weight_streaming_budget_v2 = self.streamable_weights_size

    @property
    def num_io_tensors(self) -> int:
        return len(self.inputs) + len(self.outputs)

    def get_tensor_name(self, index: int) -> str:
        return [*self.inputs, *self.outputs][index]

    def get_tensor_mode(self, name: str) -> Any:
        return self._trt.TensorIOMode.INPUT if name in self.inputs else self._trt.TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> Any:
        kinds = {"tensor(float)": "FLOAT", "tensor(float16)": "HALF", "tensor(int64)": "INT64"}
        return self._trt.DataType[kinds[(self.inputs | self.outputs)[name].type]]

    def get_tensor_location(self, name: str) -> Any:
        return self._trt.TensorLocation[self._trt.settings.get("location", {}).get(name, "DEVICE")]

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> Any:
        assert profile_index == 0
        return self.plan["profile"].get(name) or [list(self.inputs[name].shape)] * 3

    def get_weight_streaming_automatic_budget(self) -> int:
        return 400

    def create_execution_context(self, strategy: Any) -> IExecutionContext | None:
        assert strategy == self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if self._trt.settings.get("context") is False:
            return None
        self._trt.contexts.append(IExecutionContext(self._trt, self))
        return self._trt.contexts[-1]


class IExecutionContext:
    """Runs a plan on the memory that it is given."""

    def __init__(self, trt: TensorRT, engine: ICudaEngine) -> None:
        self._trt, self._cuda, self._engine = trt, trt.cuda, engine
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.workspace = (0, 0)
        self.found: dict[str, np.ndarray] = {}

    def _refuses(self, what: str) -> bool:
        if what in self._trt.settings.get("refuse", ()):
            log = __import__("sys").modules["ingot.runtimes.engines._tensorrt_build"].LOG
            log.log(ILogger.Severity.ERROR, f"Error Code 3: {what}")
            return True
        return False

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = tuple(shape)
        return not self._refuses("set_input_shape")

    def set_tensor_address(self, name: str, memory: int) -> bool:
        assert memory in self._cuda.memory["device"]
        self.addresses[name] = memory
        return not self._refuses("set_tensor_address")

    def infer_shapes(self) -> list[str]:
        if self._refuses("infer_shapes"):
            return ["sample"]
        self.found = self._compute({name: np.zeros(shape, self._dtype(name)) for name, shape in self.shapes.items()})
        return []

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (-1,) if "get_tensor_shape" in self._trt.settings.get("refuse", ()) else self.found[name].shape

    def update_device_memory_size_for_shapes(self) -> int:
        return int(self._trt.settings.get("workspace", 16)) * sum(math.prod(shape) for shape in self.shapes.values())

    def set_device_memory(self, memory: int, size: int) -> None:
        assert size >= self.update_device_memory_size_for_shapes()
        assert self._cuda.memory["device"][memory].size == size
        self.workspace = (memory, size)

    def execute_async_v3(self, stream_handle: int) -> bool:
        assert stream_handle == 7
        if self._refuses("execute_async_v3") or (self._cuda.captured is not None and self._refuses("capture")):
            return False
        self._cuda.enqueue(self._execute)
        return True

    def _execute(self) -> None:
        found = self._compute({name: self._on_device(name, shape) for name, shape in self.shapes.items()})
        for name, array in found.items():
            np.copyto(self._on_device(name, array.shape), array)

    def _compute(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        names = list(self._engine.outputs)
        return dict(zip(names, self._engine.session.run(names, inputs), strict=True))

    def _on_device(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        memory = self._cuda.memory["device"][self.addresses[name]]
        size = math.prod(shape) * self._dtype(name).itemsize
        return memory[:size].view(self._dtype(name)).reshape(shape)

    def _dtype(self, name: str) -> np.dtype[Any]:
        kinds = {"FLOAT": np.float32, "HALF": np.float16, "INT64": np.int64}
        return np.dtype(kinds[self._engine.get_tensor_dtype(name).name])
