"""TensorRT's engine without a GPU: its code on stand-ins for TensorRT and CUDA, end to end."""

from __future__ import annotations

import importlib
import json
import logging
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ingot.runtimes.engines import _tensorrt_options as options
from ingot.runtimes.errors import EngineError, InputError
from ingot.runtimes.signature import Signature, TensorSpec

from .cuda_fake import Cuda
from .tensorrt_fake import VERSION
from .tensorrt_machine import BUILD, ENGINES, H100, RTX, SIGNATURE, Machine, graph, h100, install

__all__ = ["graph", "h100", "install"]  # fixtures


def inputs(rows: int = 2, value: float = 1.0, columns: int = 3) -> dict[str, Any]:
    return {"sample": np.full((rows, columns), value, np.float32), "timestep": np.asarray(0.5, np.float32)}


def answer(engine: Any, *given: Any) -> float:
    """The one value that a run's output holds everywhere."""
    found = engine.run(inputs(*given))["out"]
    assert found.shape == inputs(*given)["sample"].shape
    assert np.all(found == found.flat[0])
    return float(found.flat[0])


# --- running -------------------------------------------------------------------------------------------------------------


def test_a_plan_is_built_on_first_load_and_taken_from_the_cache_after(
    h100: Machine, graph: Path, tmp_path: Path
) -> None:
    opened = h100.open(graph)
    assert answer(opened) == 2.5  # sums of halves are exact
    assert len(h100.trt.built) == 1
    (plan,), (said,) = h100.cache.glob("*.plan"), h100.cache.glob("*.json")
    meaning = json.loads(said.read_text())
    assert (meaning["gpu"], meaning["compute_capability"], meaning["tensorrt"]) == (H100[0], "9.0", VERSION)
    assert meaning["graph"].keys() == {"tensorrt.onnx"}
    assert plan.stem == said.stem
    assert h100.trt.built[0]["profile"] == {"sample": [[1, 1], [2, 3], [4, 5]]}
    again = h100.open(graph)
    assert answer(again, 4, 3.0) == 6.5
    assert len(h100.trt.built) == 1
    assert not list(h100.cache.glob("*.new"))
    h100.open(graph, cache=tmp_path / "elsewhere")
    assert len(list((tmp_path / "elsewhere").glob("*.plan"))) == 1
    h100.trt.built.pop()
    other = {"build": {**BUILD, "optimization_level": 5}}
    h100.open(graph, stored=other)
    graph.with_name("tensorrt.onnx_data").write_bytes(b"other weights")
    h100.open(graph)
    assert len(h100.trt.built) == 3


def test_buffers_are_reused_and_grow(h100: Machine, graph: Path) -> None:
    opened = h100.open(graph, cuda_graph=False)
    assert [answer(opened, 2, float(n)) for n in range(4)] == [0.5, 2.5, 4.5, 6.5]
    allocated = h100.cuda.calls.count("cudaMalloc")
    assert allocated == 4  # sample, timestep, out, workspace
    answer(opened, 1)  # smaller
    assert h100.cuda.calls.count("cudaMalloc") == allocated
    answer(opened, 4)  # larger: sample, out, workspace
    assert h100.cuda.calls.count("cudaMalloc") == allocated + 3
    assert len(h100.cuda.memory["device"]) == 4
    assert len(h100.cuda.memory["host"]) == 3
    assert "cudaStreamBeginCapture" not in h100.cuda.calls


def test_a_cuda_graph_is_captured_once_and_again_when_the_shapes_change(h100: Machine, graph: Path) -> None:
    opened = h100.open(graph)
    assert [answer(opened, 2, float(n)) for n in range(5)] == [0.5, 2.5, 4.5, 6.5, 8.5]
    assert h100.cuda.calls.count("cudaStreamBeginCapture") == 1
    assert h100.cuda.calls.count("cudaGraphLaunch") == 4  # the first run went without
    assert [answer(opened, 4, float(n)) for n in range(3)] == [0.5, 2.5, 4.5]
    assert h100.cuda.calls.count("cudaStreamBeginCapture") == 2
    assert h100.cuda.open == {"stream": 1, "graph": 0, "exec": 1}
    assert h100.cuda.calls.count("cudaGraphLaunch") == 6


def test_a_plan_that_cannot_be_captured_runs_without(h100: Machine, graph: Path) -> None:
    h100.trt.settings["refuse"] = ("capture",)
    opened = h100.open(graph)
    assert [answer(opened, 2, float(n)) for n in range(4)] == [0.5, 2.5, 4.5, 6.5]
    assert h100.cuda.calls.count("cudaStreamBeginCapture") == 1
    assert h100.cuda.open["graph"] == 0
    must = h100.open(graph, cuda_graph=True)
    answer(must)
    with pytest.raises(EngineError, match="could not run the plan: Error Code 3: capture"):
        answer(must)


def test_what_a_failed_capture_said_is_not_said_again(h100: Machine, graph: Path) -> None:
    opened = h100.open(graph)
    answer(opened)
    log = sys.modules[f"{ENGINES}._tensorrt_build"].LOG
    log.log(h100.trt.ILogger.Severity.ERROR, "Error Code 1: cannot be captured")
    h100.cuda.failing["cudaStreamBeginCapture"] = Cuda.cudaError_t.cudaErrorStreamCaptureUnsupported
    assert answer(opened) == 2.5
    h100.trt.settings["refuse"] = ("infer_shapes",)
    with pytest.raises(EngineError, match=r"cannot infer shapes without sample: Error Code 3: infer_shapes$"):
        opened.run(inputs(3))


def test_a_plan_that_needs_no_memory_to_work_in_has_an_address(h100: Machine, graph: Path) -> None:
    h100.trt.settings["workspace"] = 0
    assert answer(h100.open(graph)) == 2.5


def test_a_scalar_may_be_the_first_input(h100: Machine, graph: Path) -> None:
    turned = Signature(SIGNATURE.inputs[::-1], SIGNATURE.outputs)
    opened = h100.engine.open_graph(graph, turned, stored={"build": BUILD})
    assert opened.most_rows is None
    assert answer(opened) == 2.5


def test_outputs_are_the_callers(h100: Machine, graph: Path) -> None:
    opened = h100.open(graph)
    first = opened.run(inputs())["out"]
    kept = first.copy()
    opened.run(inputs(value=7.0))
    np.testing.assert_array_equal(first, kept)
    turned = np.arange(6, dtype=np.float64).reshape(3, 2).T  # neither contiguous nor float32
    np.testing.assert_array_equal(opened.run({**inputs(), "sample": turned})["out"], turned * 2 + 0.5)


def test_threads_take_turns(h100: Machine, graph: Path) -> None:
    opened = h100.open(graph)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda n: answer(opened, 1 + n % 3, float(n)), range(40)))
    assert found == [2.0 * n + 0.5 for n in range(40)]


def test_closing_gives_everything_back(h100: Machine, graph: Path) -> None:
    opened = h100.open(graph)
    answer(opened)
    answer(opened)
    opened.close()
    opened.close()
    assert h100.cuda.memory == {"device": {}, "host": {}}
    assert h100.cuda.open == {"stream": 0, "graph": 0, "exec": 0}
    with pytest.raises(EngineError, match="the graph was closed"):
        opened.run(inputs())


def test_sizes_outside_of_the_plan_are_named_and_batches_split(h100: Machine, graph: Path) -> None:
    from ingot.runtimes.engines import run_in_batches

    opened = h100.open(graph)
    assert opened.most_rows == 4
    message = r"'sample' is \[5, 3\], the plan takes \[1, 1\] to \[4, 5\]; .* sizes"
    with pytest.raises(InputError, match=message):
        opened.run(inputs(5))
    with pytest.raises(InputError, match=r"'sample' is \[1, 6\]"):
        opened.run(inputs(1, columns=6))
    assert run_in_batches(opened, inputs(9))["out"].shape == (9, 3)
    wide = h100.open(graph, sizes={"batch": 9})
    assert wide.most_rows == 9
    assert h100.trt.built[-1]["profile"] == {"sample": [[9, 1], [9, 3], [9, 5]]}


def test_a_failure_leaves_an_engine_that_runs_again(h100: Machine, graph: Path) -> None:
    opened = h100.open(graph)
    answer(opened)
    for refusal, message in {
        "set_input_shape": r"does not take 'sample' as \[3, 3\]: Error Code 3: set_input_shape",
        "set_tensor_address": r"does not take the buffer of 'sample'",
        "infer_shapes": r"cannot infer shapes without sample",
        "get_tensor_shape": r"the shape of 'out' depends on the values",
        "execute_async_v3": r"could not run the plan: Error Code 3: execute_async_v3",
    }.items():
        h100.trt.settings["refuse"] = (refusal,)
        with pytest.raises(EngineError, match=message):
            opened.run(inputs(3))
        h100.trt.settings.clear()
        assert answer(opened, 3, 2.0) == 4.5
        assert answer(opened, 2, 2.0) == 4.5


def test_cuda_errors_are_named(h100: Machine, graph: Path) -> None:
    opened = h100.open(graph)
    h100.cuda.failing["cudaMallocHost"] = Cuda.cudaError_t.cudaErrorMemoryAllocation
    with pytest.raises(EngineError, match="CUDA: cudaMallocHost: cudaErrorMemoryAllocation: in words"):
        opened.run(inputs())
    h100.cuda.failing.clear()
    assert answer(opened) == 2.5
    h100.cuda.failing["cudaStreamEndCapture"] = Cuda.cudaError_t.cudaErrorStreamCaptureUnsupported
    assert answer(opened) == 2.5  # no error of a capture matters where none was asked for
    h100.trt.settings["refuse"] = ("capture",)
    other = h100.open(graph)
    assert [answer(other), answer(other)] == [2.5, 2.5]


def test_weights_can_be_streamed(h100: Machine, graph: Path) -> None:
    stored = {"build": {**BUILD, "weight_streaming": True}}
    for budget, kept in ((300, 300), ("auto", 400), (5000, 1000), (None, 1000)):
        opened = h100.open(graph, stored=stored, weight_streaming_budget=budget)
        assert opened._plan.weight_streaming_budget_v2 == kept
        assert answer(opened) == 2.5
    for budget in (-1, "much"):
        with pytest.raises(InputError, match="neither a number of bytes nor 'auto'"):
            h100.open(graph, stored=stored, weight_streaming_budget=budget)
    with pytest.raises(InputError, match="not built to stream weights"):
        h100.open(graph, weight_streaming_budget=0)


def test_a_plan_of_another_graph_is_refused(h100: Machine, graph: Path) -> None:
    h100.open(graph)
    half = Signature(
        (TensorSpec("sample", "float16", ("batch", 3)), TensorSpec("mask", "float32", ())),
        (TensorSpec("timestep", "float32", ()),),
    )
    with pytest.raises(EngineError) as caught:
        h100.engine.open_graph(graph, half, stored={"build": {}})
    for part in (
        "it has no 'mask'",
        "'sample' is",
        "not float16",
        "'timestep' is an input on one side",
        "it has 'out'",
    ):
        assert part in str(caught.value)
    h100.trt.settings["location"] = {"timestep": "HOST"}
    with pytest.raises(EngineError, match="'timestep' must lie in the host's memory"):
        h100.open(graph)
    h100.trt.settings.clear()
    h100.trt.settings["context"] = False
    with pytest.raises(EngineError, match="cannot make an execution context: it does not say why"):
        h100.open(graph)


# --- building ------------------------------------------------------------------------------------------------------------


def test_build_options_reach_the_builder(h100: Machine, graph: Path, caplog: pytest.LogCaptureFixture) -> None:
    stages: list[tuple[str, float]] = []
    build = {
        **BUILD,
        "optimization_level": 5,
        "tf32": True,
        "refit": True,
        "version_compatible": True,
        "hardware_compatibility": "ampere_plus",
        "workspace": 1 << 30,
    }
    with caplog.at_level(logging.INFO, "ingot"):
        h100.open(graph, stored={"build": build}, progress=lambda *stage: stages.append(stage))
    (built,) = h100.trt.built
    assert built["flags"] == ["REFIT", "TF32", "VERSION_COMPATIBLE"]
    assert (built["level"], built["hardware"], built["workspace"]) == (5, "AMPERE_PLUS", 1 << 30)
    assert stages == [("Building", 0.5), ("Building", 1.0)]
    assert "TensorRT: slow tactic" in caplog.text
    h100.open(graph)
    assert (h100.trt.built[1]["flags"], h100.trt.built[1]["level"]) == ([], 3)


def test_a_misspelt_size_builds_nothing(h100: Machine, graph: Path) -> None:
    with pytest.raises(InputError, match="unknown size 'heigth'; available: batch, height, width"):
        h100.open(graph, sizes={"heigth": 512})
    h100.open(graph, sizes={"height": 512})  # another graph's
    assert len(h100.trt.built) == 1


def test_the_shapes_of_a_plan_are_part_of_its_name(h100: Machine, graph: Path) -> None:
    """The same options come to other shapes where the signature names the dimensions otherwise."""
    h100.open(graph)
    wider = TensorSpec("sample", "float32", ("batch", "width/4"))
    h100.engine.open_graph(graph, Signature((wider, *SIGNATURE.inputs[1:]), SIGNATURE.outputs), stored={"build": BUILD})
    assert [built["profile"]["sample"][2] for built in h100.trt.built] == [[4, 5], [4, 10]]
    said = [json.loads(file.read_text())["profile"]["sample"][2] for file in h100.cache.glob("*.json")]
    assert sorted(said) == [[4, 5], [4, 10]]


def test_threads_that_write_one_file_leave_one_of_theirs(h100: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    plans = sys.modules[f"{ENGINES}._tensorrt_plans"]
    file, both = h100.cache / "x.plan", threading.Barrier(2, timeout=10)
    honest = Path.replace

    def replace(self: Path, target: Path) -> Path:
        both.wait()  # both have written, and neither has put its file in place
        return honest(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    contents = [b"a" * 300_000, b"b" * 200_000]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda content: plans.write(file, content), contents))
    assert file.read_bytes() in contents
    assert [left.name for left in h100.cache.iterdir()] == ["x.plan"]


def test_a_file_that_cannot_be_put_in_place_leaves_nothing(h100: Machine) -> None:
    plans = sys.modules[f"{ENGINES}._tensorrt_plans"]
    (h100.cache / "x.plan").mkdir(parents=True)
    with pytest.raises(OSError, match=r"x\.plan"):
        plans.write(h100.cache / "x.plan", b"a")
    assert [left.name for left in h100.cache.iterdir()] == ["x.plan"]


def test_timings_of_earlier_builds_are_used(h100: Machine, graph: Path) -> None:
    h100.open(graph)
    h100.open(graph, sizes={"batch": 3})
    (timings,) = h100.cache.glob("timing-*.cache")
    assert timings.read_bytes() == b"timed timed "
    timings.write_bytes(b"foreign")
    h100.open(graph, sizes={"batch": 2})
    assert timings.read_bytes() == b"timed "
    h100.trt.settings["timing"] = False
    with pytest.raises(EngineError, match="takes no timing cache"):
        h100.open(graph, sizes={"batch": 1})


def test_what_tensorrt_says_of_a_graph_is_passed_on(h100: Machine, graph: Path) -> None:
    h100.trt.settings["parser"] = [("NonZero", "node_7", "unsupported type"), ("Loop", "node_9", "no")]
    with pytest.raises(EngineError, match=r"cannot read .*: NonZero 'node_7': unsupported type; Loop 'node_9': no"):
        h100.open(graph)
    h100.trt.settings = {"build": False}
    with pytest.raises(EngineError, match=r"cannot build a plan of .*: Error Code 10: no implementation for node"):
        h100.open(graph)
    h100.trt.settings = {"profile": False}
    with pytest.raises(EngineError, match="does not take the profile"):
        h100.open(graph)
    assert not list(h100.cache.glob("*.plan"))


def test_a_spoilt_cache_is_built_again(h100: Machine, graph: Path, caplog: pytest.LogCaptureFixture) -> None:
    h100.open(graph)
    (plan,) = h100.cache.glob("*.plan")
    plan.write_bytes(b"half a plan")
    assert answer(h100.open(graph)) == 2.5
    assert len(h100.trt.built) == 2
    assert "building the plan of" in caplog.text
    assert "magic tag does not match" in caplog.text


# --- a bundle's own plan -------------------------------------------------------------------------------------------------


def with_plan(machine: Machine, graph: Path, **build: Any) -> dict[str, Any]:
    """Store a plan in the bundle, as an export on this machine does; what the manifest keeps."""
    given = {**BUILD, **build}
    content, tied_to = machine.engine.build_plan(graph, SIGNATURE, options.build_options(given))
    graph.with_name("model.plan").write_bytes(content)
    return {"build": given, "plan": "model.plan", **tied_to}


def test_a_bundles_plan_is_opened_where_it_fits(h100: Machine, graph: Path) -> None:
    stored = with_plan(h100, graph)
    assert stored["gpu"] == H100[0]
    assert answer(h100.open(graph, stored=stored)) == 2.5
    assert len(h100.trt.built) == 1
    h100.open(graph, stored=stored, rebuild=True)
    h100.open(graph, stored=stored, sizes={"batch": 2})
    assert len(h100.trt.built) == 3


@pytest.mark.parametrize(
    ("level", "compatible", "changes", "refused"),
    [
        ("none", False, {}, None),
        ("none", False, {"gpu": RTX[0], "compute_capability": "8.9"}, f"the GPU {RTX[0]}, here is {H100[0]}"),
        ("none", False, {"gpu": "NVIDIA H200"}, "the GPU NVIDIA H200"),
        ("none", False, {"tensorrt": "10.15.1.29"}, f"TensorRT 10.15.1.29, here is {VERSION}"),
        ("none", False, {"tensorrt": "11.3.0.1"}, "TensorRT 11.3.0.1"),
        ("none", False, {"platform": "win32 AMD64"}, "the platform win32 AMD64"),
        ("same_compute_capability", False, {"gpu": "NVIDIA H200"}, None),
        ("same_compute_capability", False, {"compute_capability": "8.0"}, "the GPU"),
        ("ampere_plus", False, {"gpu": "NVIDIA A100", "compute_capability": "8.0"}, None),
        ("none", True, {"tensorrt": "11.3.0.1"}, None),
        ("none", True, {"tensorrt": "11.5.0.1"}, "TensorRT 11.5.0.1"),
        ("none", True, {"tensorrt": "10.15.1.29"}, "TensorRT 10.15.1.29"),
    ],
)
def test_a_plan_for_another_machine_is_refused_with_what_to_run(
    h100: Machine, graph: Path, level: str, compatible: bool, changes: dict[str, str], refused: str | None
) -> None:
    stored = with_plan(h100, graph, hardware_compatibility=level, version_compatible=compatible) | changes
    if refused is None:
        assert answer(h100.open(graph, stored=stored, trust_plan=True)) == 2.5
        return
    bundle = graph.parent.parent
    with pytest.raises(EngineError) as caught:
        h100.open(graph, stored=stored)
    assert f"was built for {refused}" in str(caught.value)
    assert f"`ingot add {bundle} --to tensorrt`" in str(caught.value)
    assert "rebuild=true" in str(caught.value)


def test_a_bundle_may_not_bring_machine_code_unasked(h100: Machine, graph: Path) -> None:
    stored = with_plan(h100, graph, version_compatible=True)
    with pytest.raises(EngineError, match=r"carries machine code .* trust_plan=true"):
        h100.open(graph, stored=stored)
    assert answer(h100.open(graph, stored=stored, trust_plan=True)) == 2.5
    assert answer(h100.open(graph, stored=stored, rebuild=True)) == 2.5  # one's own needs no trust
    assert answer(h100.open(graph, stored=stored, rebuild=True)) == 2.5


@pytest.mark.parametrize("name", ["../model.plan", "/etc/passwd", "other.plan"])
def test_a_plan_lies_beside_its_graph_or_nowhere(h100: Machine, graph: Path, name: str) -> None:
    stored = with_plan(h100, graph) | {"plan": name}
    (graph.parent.parent / "model.plan").write_bytes(b"")
    with pytest.raises(EngineError, match="has no plan"):
        h100.open(graph, stored=stored)


# --- machines ------------------------------------------------------------------------------------------------------------


def test_devices_are_the_gpus(install: Callable[..., Machine], graph: Path) -> None:
    two = install(H100, RTX)
    assert two.engine.devices() == ["cuda", "cuda:1"]
    assert two.engine.report() == {
        "version": VERSION,
        "cuda:0": f"{H100[0]}, compute capability 9.0",
        "cuda:1": f"{RTX[0]}, compute capability 8.9",
    }
    two.open(graph, device="cuda:1")
    assert json.loads(next(two.cache.glob("*.json")).read_text())["gpu"] == RTX[0]
    with pytest.raises(InputError, match="there is no device 'cuda:2' here; TensorRT has: cuda, cuda:1"):
        two.open(graph, device="cuda:2")
    for name in ("mps", "cuda:x"):
        with pytest.raises(InputError, match=f"unknown device '{name}' for TensorRT; it has: cuda, cuda:1"):
            two.open(graph, device=name)


def test_a_machine_without_a_gpu_says_so(install: Callable[..., Machine], graph: Path) -> None:
    bare = install()
    bare.cuda.failing["cudaGetDeviceCount"] = Cuda.cudaError_t.cudaErrorNoDevice
    assert bare.engine.devices() == []
    assert "none" in bare.engine.report()["devices"]
    with pytest.raises(EngineError, match="TensorRT needs an NVIDIA GPU"):
        bare.open(graph)


def test_libraries_that_do_not_load_are_named(install: Callable[..., Machine], monkeypatch: pytest.MonkeyPatch) -> None:
    install(H100)

    class Broken:
        def find_spec(self, name: str, *_: Any) -> None:
            if name == "tensorrt":
                raise ImportError("libnvinfer.so.11: cannot open shared object file")

    monkeypatch.delitem(sys.modules, "tensorrt")
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    sys.modules.pop(f"{ENGINES}._tensorrt_build")
    with pytest.raises(EngineError, match=r"its libraries do not load: libnvinfer\.so\.11"):
        importlib.import_module(f"{ENGINES}._tensorrt_build")
