"""Fixtures of TensorRT's tests: a machine with GPUs that are not there, and a small graph."""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from ingot.runtimes.signature import Signature, TensorSpec

from .cuda_fake import Cuda
from .tensorrt_fake import TensorRT

ENGINES = "ingot.runtimes.engines"
H100 = ("NVIDIA H100 80GB HBM3", 9, 0)
RTX = ("NVIDIA GeForce RTX 4090", 8, 9)
SIGNATURE = Signature(
    (TensorSpec("sample", "float32", ("batch", "width/8")), TensorSpec("timestep", "float32", ())),
    (TensorSpec("out", "float32", ("batch", "width/8")),),
)
BUILD = {"sizes": {"batch": [1, 2, 4], "width": [8, 24, 40]}}


@dataclass
class Machine:
    """A machine with TensorRT and GPUs that are not there."""

    trt: TensorRT
    cuda: Cuda
    engine: Any
    cache: Path

    def open(self, file: Path, **given: Any) -> Any:
        return self.engine.open_graph(file, SIGNATURE, **{"stored": {"build": BUILD}, **given})


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., Machine]]:
    """Put a machine with these GPUs under the engine, which is imported afresh and forgotten again."""
    names = [
        f"{ENGINES}.{name}" for name in ("tensorrt", "_tensorrt_build", "_tensorrt_run", "_tensorrt_plans", "_cuda")
    ]

    def machine(*gpus: tuple[str, int, int]) -> Machine:
        cuda = Cuda(*gpus)
        trt = TensorRT(cuda)
        monkeypatch.setitem(sys.modules, "tensorrt", trt)
        bindings: Any = types.ModuleType("cuda.bindings")
        bindings.runtime = cuda
        monkeypatch.setitem(sys.modules, "cuda.bindings", bindings)
        monkeypatch.setenv("INGOT_CACHE", str(tmp_path / "cache"))
        for name in names:
            sys.modules.pop(name, None)
        return Machine(trt, cuda, importlib.import_module(names[0]), tmp_path / "cache" / "tensorrt")

    yield machine
    for name in names:
        sys.modules.pop(name, None)
        vars(importlib.import_module(ENGINES)).pop(name.rpartition(".")[2], None)


@pytest.fixture
def h100(install: Callable[..., Machine]) -> Machine:
    return install(H100)


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    """out = 2 * sample + timestep, in a bundle."""
    made = helper.make_graph(
        [
            helper.make_node("Add", ["sample", "sample"], ["double"]),
            helper.make_node("Add", ["double", "timestep"], ["out"]),
        ],
        "double",
        [
            helper.make_tensor_value_info("sample", TensorProto.FLOAT, ["batch", "width"]),
            helper.make_tensor_value_info("timestep", TensorProto.FLOAT, []),
        ],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["batch", "width"])],
    )
    file = tmp_path / "bundle" / "unet" / "tensorrt.onnx"
    file.parent.mkdir(parents=True)
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), file)
    return file
