"""ONNX Runtime's engine beyond the contract of all engines: I/O binding, options of the providers for NVIDIA's GPUs."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from ingot.runtimes.engines import _onnx_providers as providers
from ingot.runtimes.engines import onnx as engine
from ingot.runtimes.errors import EngineError, InputError
from ingot.runtimes.signature import Signature, TensorSpec

SIGNATURE = Signature(
    (TensorSpec("sample", "float32", ("batch", "width/8")), TensorSpec("timestep", "float32", ())),
    (TensorSpec("out", "float32", ("batch", "width/8")),),
)
HALF = Signature((TensorSpec("sample", "float16", ("batch", 4, "height/8", "width/8")),), ())


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """out = 2 * sample + timestep."""
    graph = helper.make_graph(
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
    file = tmp_path_factory.mktemp("model") / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), file)
    return file


def inputs(rows: int = 2, value: float = 1.0) -> dict[str, Any]:
    return {"sample": np.full((rows, 3), value, np.float32), "timestep": np.asarray(0.5, np.float32)}


def test_bound_buffers_are_reused_and_answers_are_the_callers(model: Path) -> None:
    graph = engine.open_graph(model, SIGNATURE, device="cpu", io_binding=True)
    found = [graph.run(inputs(rows, value))["out"] for rows, value in ((2, 1.0), (2, 2.0), (3, 4.0), (2, 8.0))]
    for array, (rows, value) in zip(found, ((2, 2.5), (2, 4.5), (3, 8.5), (2, 16.5)), strict=True):
        np.testing.assert_array_equal(array, np.full((rows, 3), value, np.float32))  # sums of halves are exact
    assert [bound.number for bound in graph._bound.values()] == [2, 1]  # the first shape's buffers served three runs
    for rows in range(10, 10 + 2 * engine.KEPT_SHAPES):
        graph.run(inputs(rows))
    assert len(graph._bound) == engine.KEPT_SHAPES
    graph.close()


def test_the_same_buffers_are_bound_again(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A captured CUDA graph writes where it wrote: later runs must bind outputs by address and not by device."""
    graph = engine.open_graph(model, SIGNATURE, io_binding=True)
    graph.run(inputs())
    (bound,) = graph._bound.values()
    addresses = [value.data_ptr() for value in (*bound.inputs.values(), *bound.outputs)]
    monkeypatch.setattr(ort.IOBinding, "bind_output", None)
    graph.run(inputs(value=3.0))
    assert [value.data_ptr() for value in (*bound.inputs.values(), *bound.outputs)] == addresses
    np.testing.assert_array_equal(bound.outputs[0].numpy(), np.full((2, 3), 6.5, np.float32))


def test_binding_leaves_the_callers_arrays_alone_and_takes_views(model: Path) -> None:
    graph = engine.open_graph(model, SIGNATURE, io_binding=True)
    given = inputs()
    graph.run(given)
    graph.run(inputs(value=5.0))
    np.testing.assert_array_equal(given["sample"], np.ones((2, 3), np.float32))
    turned = np.arange(6, dtype=np.float32).reshape(3, 2).T
    np.testing.assert_array_equal(graph.run({**given, "sample": turned})["out"], turned * 2 + 0.5)


def test_threads_take_turns_with_bound_buffers(model: Path) -> None:
    graph = engine.open_graph(model, SIGNATURE, io_binding=True)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda n: graph.run(inputs(1 + n % 3, float(n)))["out"], range(60)))
    assert all(np.array_equal(array, np.full((1 + n % 3, 3), 2 * n + 0.5)) for n, array in enumerate(found))


@pytest.mark.parametrize("binding", [False, True])
def test_a_closed_graph_says_so(model: Path, binding: bool) -> None:
    graph = engine.open_graph(model, SIGNATURE, io_binding=binding)
    graph.run(inputs())
    graph.close()
    graph.close()
    with pytest.raises(EngineError, match="the graph was closed"):
        graph.run(inputs())


def test_what_onnx_runtime_says_of_a_failing_run_is_passed_on(model: Path) -> None:
    narrow = Signature((*SIGNATURE.inputs, TensorSpec("mask", "float32", ("batch",))), SIGNATURE.outputs)
    for binding in (False, True):
        graph = engine.open_graph(model, narrow, io_binding=binding)
        with pytest.raises(EngineError, match=r"could not run the graph on .*'mask': \[2\].*mask"):
            graph.run({**inputs(), "mask": np.zeros(2, np.float32)})


def test_options_for_cuda_by_their_names() -> None:
    chosen = providers.providers_for(
        "cuda:1",
        HALF,
        tf32=False,
        cuda_graph=True,
        provider_options={"gpu_mem_limit": 8 << 30, "arena_extend_strategy": "kSameAsRequested"},
    )
    assert chosen == [
        (
            "CUDAExecutionProvider",
            {
                "device_id": 1,
                "use_tf32": 0,
                "enable_cuda_graph": 1,
                "gpu_mem_limit": 8 << 30,
                "arena_extend_strategy": "kSameAsRequested",
            },
        ),
        "CPUExecutionProvider",
    ]
    assert providers.providers_for("cuda", HALF)[0] == ("CUDAExecutionProvider", {"device_id": 0})


def test_options_for_tensorrt_keep_engines_and_name_the_shapes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("INGOT_CACHE", str(tmp_path))
    sizes = {"batch": [1, 2, 4], "height": 512, "width": [256, 512, 1024]}
    chosen = providers.providers_for(
        "tensorrt", HALF, cuda_graph=True, sizes=sizes, provider_options={"trt_builder_optimization_level": 5}
    )
    folder = str(tmp_path / "onnxruntime-tensorrt")
    assert chosen[0] == (
        "TensorrtExecutionProvider",
        {
            "device_id": 0,
            "trt_engine_cache_enable": True,
            "trt_engine_cache_path": folder,
            "trt_timing_cache_enable": True,
            "trt_timing_cache_path": folder,
            "trt_fp16_enable": True,
            "trt_cuda_graph_enable": True,
            "trt_profile_min_shapes": "sample:1x4x64x32",
            "trt_profile_opt_shapes": "sample:2x4x64x64",
            "trt_profile_max_shapes": "sample:4x4x64x128",
            "trt_builder_optimization_level": 5,
        },
    )
    assert chosen[1] == ("CUDAExecutionProvider", {"device_id": 0})  # what the first does not take; no graph of its own
    monkeypatch.delenv("INGOT_CACHE")
    assert providers.cache_folder(None) == Path.home() / ".cache" / "ingot" / "onnxruntime-tensorrt"
    assert providers.cache_folder("here") == Path("here")
    assert "trt_fp16_enable" not in providers.tensorrt_options(0, SIGNATURE, None, None, graph=False)


def test_every_option_that_is_set_is_one_that_the_provider_has() -> None:
    for tf32 in (None, True, False):
        for device in ("cuda", "tensorrt"):
            sizes = {"batch": 1, "height": 64, "width": 64}
            for entry in providers.providers_for(device, HALF, tf32=tf32, cuda_graph=True, sizes=sizes):
                name, options = (entry, {}) if isinstance(entry, str) else entry
                assert set(options) <= providers.OPTIONS.get(name, set())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"device": "abacus"}, r"unknown device 'abacus' for ONNX Runtime; available: cpu, cuda"),
        ({"device": "cuda:one"}, r"unknown device 'cuda:one'"),
        ({"device": "cuda", "provider_options": {"mem": 1}}, r"provider option for the device cuda 'mem'; available: .*gpu_mem_limit"),
        ({"device": "cpu", "provider_options": {"mem": 1}}, r"'mem' is given, but Ingot knows none for the device cpu"),
        ({"device": "cpu", "cuda_graph": True}, r"cuda_graph needs the device cuda or tensorrt"),
        ({"device": "cuda", "cuda_graph": True, "io_binding": False}, r"cuda_graph needs .* io_binding"),
        ({"device": "tensorrt", "sizes": {"batch": [2, 1, 1]}}, r"batch=\[2, 1, 1\] is not \[min, opt, max\]"),
        ({"providers": []}, r"providers is empty"),
        ({"threads": 0}, r"threads=0"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_said_before_anything_is_opened(
    arguments: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        engine.open_graph(tmp_path / "none.onnx", SIGNATURE, **arguments)


def test_a_provider_that_is_not_in_the_package_is_named_with_its_package(model: Path) -> None:
    for device, package in (("cuda:0", "onnxruntime-gpu"), ("openvino", "onnxruntime-openvino")):
        with pytest.raises(EngineError, match=f"pip install {package}"):
            engine.open_graph(model, SIGNATURE, device=device)


def test_devices_are_those_whose_hardware_may_be_here(monkeypatch: pytest.MonkeyPatch) -> None:
    everything = [names[0] for names in providers.DEVICES.values()]
    monkeypatch.setattr(ort, "get_available_providers", lambda: everything)
    monkeypatch.setattr(providers.shutil, "which", lambda _: None)
    monkeypatch.setattr(Path, "exists", lambda _: False)
    monkeypatch.setattr(providers.sys, "platform", "linux")
    assert engine.devices() == ["directml", "openvino", "cpu"]
    monkeypatch.setattr(providers.shutil, "which", lambda _: "/usr/bin/nvidia-smi")
    assert engine.devices()[:2] == ["cuda", "tensorrt"]
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    assert engine.devices() == ["cpu"]


def test_parity_computes_without_tf32_where_there_is_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    seen = {}

    def session(*_: Any, providers: Any, **__: Any) -> Any:
        seen["providers"] = providers
        raise RuntimeError("no such library")

    monkeypatch.setattr(ort, "InferenceSession", session)
    with pytest.raises(EngineError, match="no such library"):
        engine.open_graph(tmp_path / "m.onnx", SIGNATURE, device="cuda", **engine.PARITY_OPTIONS)
    assert seen["providers"][0] == ("CUDAExecutionProvider", {"device_id": 0, "use_tf32": 0})


def test_a_captured_graph_has_a_number_for_each_set_of_buffers(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU, which ignores the number; that a GPU captures by it was not tried."""
    graph = engine.OnnxEngine(ort.InferenceSession(str(model)), SIGNATURE, io_binding=("cpu", 0), cuda_graph=True)
    numbers: list[tuple[str, str]] = []

    class Options(ort.RunOptions):  # type: ignore[misc]  # onnxruntime comes without types
        def add_run_config_entry(self, key: str, value: str) -> None:
            numbers.append((key, value))

    monkeypatch.setattr(ort, "RunOptions", Options)
    for rows in (2, 3, 2):
        graph.run(inputs(rows))
    assert numbers == [("gpu_graph_id", number) for number in ("1", "2", "1")]


def test_one_file_serves_several_fixed_sizes(model: Path, tmp_path: Path) -> None:
    named = onnx.load(model)
    for value in (*named.graph.input[:1], *named.graph.output):
        value.type.tensor_type.shape.dim[1].dim_param = "width/8"
    file = tmp_path / "named.onnx"
    onnx.save(named, file)
    sample = inputs()["sample"]
    for rows, width in ((2, 24), (3, 20)):  # 20 / 8 is rounded up to 3
        graph = engine.open_graph(file, SIGNATURE, sizes={"batch": rows, "width": width})
        assert [spec.shape for spec in graph.signature.inputs] == [(rows, 3), ()]
        assert graph.signature.outputs[0].shape == (rows, 3)
        assert graph.session.get_inputs()[0].shape == [rows, 3]  # the session itself is fixed, and plans for that size
        np.testing.assert_array_equal(graph.run(inputs(rows))["out"], np.full((rows, 3), 2.5, np.float32))
        with pytest.raises(InputError, match=r"'sample' has shape \[5, 3\]"):
            graph.run(inputs(5))
    only = engine.open_graph(file, SIGNATURE, sizes={"width": 24})
    assert only.signature.inputs[0].shape == ("batch", 3)
    assert only.run({"sample": np.repeat(sample, 4, axis=0), "timestep": np.asarray(0, np.float32)})["out"].shape == (
        8,
        3,
    )


def test_sizes_that_cannot_be_are_told(model: Path) -> None:
    with pytest.raises(InputError, match="unknown size 'depth'; available: batch, height, width"):
        engine.open_graph(model, SIGNATURE, sizes={"depth": 2})
    with pytest.raises(InputError, match=r"batch=\[1, 2, 4\]: a whole number"):
        engine.open_graph(model, SIGNATURE, sizes={"batch": [1, 2, 4]})  # ranges are TensorRT's
    options = ort.SessionOptions()
    with pytest.raises(InputError, match="session_options"):
        engine.open_graph(model, SIGNATURE, sizes={"batch": 2}, session_options=options)
