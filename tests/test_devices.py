"""What each kind of device asks of the engine, with stand-ins for the devices that are not here, on the CPU.

No test here shows that anything runs on a GPU, a Mac or a Gaudi. They show which calls are made, and in which order.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ingot.runtimes import devices
from ingot.runtimes.devices import cuda, hpu, mps
from ingot.runtimes.devices.policy import Policy, Throughput, Wishes
from ingot.runtimes.engines import run_in_batches
from ingot.runtimes.engines.torch import TorchEngine, open_graph
from ingot.runtimes.errors import EngineError, InputError
from ingot.runtimes.signature import Signature, TensorSpec

GIB = 2**30
SIGNATURE = Signature((TensorSpec("x", "float32", ("rows", 3)),), (TensorSpec("y", "float32", ("rows", 3)),))


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A `.pt2` that doubles."""

    class Double(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2

    shapes = ({0: torch.export.Dim.DYNAMIC},)
    torch.export.save(torch.export.export(Double(), (torch.ones(2, 3),), dynamic_shapes=shapes), tmp_path / "model.pt2")
    return tmp_path / "model.pt2"


def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the engine apply another device's policy, but compute here."""
    policy_for = devices.policy_for
    monkeypatch.setattr(devices, "policy_for", lambda name, wishes: replace(policy_for(name, wishes), device="cpu"))


def rows(number: int) -> dict[str, np.ndarray]:
    return {"x": np.arange(3.0 * number, dtype=np.float32).reshape(number, 3)}


def test_the_best_device_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind, found in ((cuda, ["cuda", "cuda:1"]), (mps, []), (hpu, ["hpu"])):
        monkeypatch.setattr(kind, "present", lambda found=found: found)
    assert devices.here() == ["cuda", "cuda:1", "hpu", "cpu"]
    assert devices.policy_for(None, Wishes()).device == "cuda"
    assert devices.policy_for("cuda:0", Wishes()).device == "cuda:0"
    with pytest.raises(EngineError, match=r"no device cuda:2 on this machine; it has: cuda, cuda:1, hpu, cpu"):
        devices.policy_for("cuda:2", Wishes())
    for absent in ("mps:0", "cpu:1"):
        with pytest.raises(EngineError, match=f"no device {absent} on this machine; it has: cuda, cuda:1, hpu, cpu"):
            devices.policy_for(absent, Wishes())
    assert devices.policy_for("cpu:0", Wishes()).device == "cpu:0"
    with pytest.raises(InputError, match="unknown device 'gpu' for torch; available here: cuda"):
        devices.policy_for("gpu", Wishes())


def test_cuda_counts_its_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    card = types.SimpleNamespace(name="NVIDIA H100", major=9, minor=0, total_memory=80 * GIB)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: card)
    assert cuda.present() == ["cuda", "cuda:1"]
    assert cuda.about() == "NVIDIA H100 9.0, 80 GiB; NVIDIA H100 9.0, 80 GiB"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)  # CUDA_VISIBLE_DEVICES=""
    assert cuda.present() == []


def test_cuda_takes_what_is_asked_and_marks_the_steps_of_cuda_graphs() -> None:
    wishes = Wishes(channels_last=True, tf32=True, autocast="bfloat16", compile="reduce-overhead")
    policy = cuda.policy("cuda:1", wishes)
    assert (policy.device, policy.channels_last, policy.tf32, policy.autocast) == ("cuda:1", True, True, "bfloat16")
    assert policy.compile_options == {"mode": "reduce-overhead", "dynamic": None}
    assert (policy.one_at_a_time, policy.warm_up_runs) == (True, 3)
    assert policy.before_run is torch.compiler.cudagraph_mark_step_begin
    plain = cuda.policy("cuda", Wishes())
    assert (plain.compile_options, plain.one_at_a_time, plain.tf32, plain.most_rows) == (None, False, None, None)


def test_full_cuda_memory_says_how_full_and_what_would_do(monkeypatch: pytest.MonkeyPatch, program: Path) -> None:
    monkeypatch.setattr(cuda, "present", lambda: ["cuda"])
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (GIB // 2, 24 * GIB))
    on_the_cpu(monkeypatch)
    engine = open_graph(program, SIGNATURE, device="cuda")

    def full(_: Tensor) -> Any:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    engine._call = full
    with pytest.raises(EngineError, match=r"CUDA out of memory; cuda has 0\.5 of 24\.0 GiB free; fewer pictures"):
        engine.run(rows(2))
    assert cuda.explain(RuntimeError("another"), "cuda") is None


@pytest.fixture
def mac(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """A Mac, as far as the policy asks; its memory may be changed."""
    state = {"memory": 16 * GIB, "used": GIB, "recommended": 10 * GIB}
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(mps, "memory_bytes", lambda: state["memory"])
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: state["used"])
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: state["recommended"])
    return state


@pytest.mark.parametrize(
    ("memory", "attention", "slice_above"),
    [(16, None, 0), (63, None, 0), (64, None, 4096), (128, None, 4096), (128, "sliced", 0), (16, "sdpa", None)],
)
def test_mps_slices_attention_by_memory_and_size(
    mac: dict[str, int], memory: int, attention: str | None, slice_above: int | None
) -> None:
    mac["memory"] = memory * GIB
    policy = mps.policy("mps", Wishes(attention=attention))
    assert policy.slice_above == slice_above
    assert (policy.most_rows, policy.pad, policy.no_float64) == (2, False, True)


@pytest.mark.usefixtures("mac")
def test_mps_runs_one_prompt_at_a_time(monkeypatch: pytest.MonkeyPatch, program: Path) -> None:
    on_the_cpu(monkeypatch)
    engine = open_graph(program, SIGNATURE, device="mps")
    sizes = []
    call = engine._call
    engine._call = lambda x: (sizes.append(len(x)), call(x))[1]  # type: ignore[misc]  # open, so not None
    np.testing.assert_array_equal(run_in_batches(engine, rows(5))["y"], 2 * rows(5)["x"])
    assert sizes == [2, 2, 1]
    assert open_graph(program, SIGNATURE, device="mps", most_rows=4).most_rows == 4


def test_mps_says_when_memory_is_full(mac: dict[str, int], monkeypatch: pytest.MonkeyPatch, program: Path) -> None:
    on_the_cpu(monkeypatch)
    engine = open_graph(program, SIGNATURE, device="mps")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        engine.run(rows(1))
    mac["used"] = 9 * GIB + 1
    with pytest.warns(UserWarning, match=r"holds 9\.0 GiB of the 10\.0 GiB that Metal recommends, .*float16"):
        engine.run(rows(1))


@pytest.mark.usefixtures("mac")
def test_mps_with_torch_1_throws_the_first_pass_away(monkeypatch: pytest.MonkeyPatch, program: Path) -> None:
    on_the_cpu(monkeypatch)
    assert not open_graph(program, SIGNATURE, device="mps").policy.discard_first
    assert not mps.first_pass_differs("2.0.0")
    monkeypatch.setattr(mps.torch, "__version__", "1.13.1")
    engine = open_graph(program, SIGNATURE, device="mps")
    answers = iter([torch.zeros(2, 3), torch.ones(2, 3), torch.full((2, 3), 2.0)])
    engine._call = lambda _: (next(answers),)
    assert [engine.run(rows(2))["y"][0, 0] for _ in range(2)] == [1.0, 2.0]  # the zeros were the first pass's


@pytest.mark.parametrize(
    ("said", "advice"),
    [
        ("The operator 'aten::x' is not currently implemented for the MPS device.", "PYTORCH_ENABLE_MPS_FALLBACK=1, set before"),
        ("MPS backend out of memory (MPS allocated: 17 GB)", "most_rows=1"),
        ("Cannot convert a MPS Tensor to float64 dtype", "MPS has no float64"),
        ("something else", None),
    ],
)  # fmt: skip
def test_mps_knows_what_would_do(said: str, advice: str | None) -> None:
    found = mps.explain(RuntimeError(said))
    assert found is None if advice is None else advice in str(found)


@pytest.mark.usefixtures("mac")
def test_mps_tells_whether_the_fallback_is_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTORCH_ENABLE_MPS_FALLBACK", raising=False)
    assert mps.about() == "16 GiB shared with the CPU, fallback to it off"
    monkeypatch.setenv("PYTORCH_ENABLE_MPS_FALLBACK", "1")
    assert devices.report()["mps"].endswith("on")


FAKE = {
    "__init__.py": "calls = []\ndevice = True\n",
    "torch/__init__.py": "",
    "torch/core.py": (
        "import os\nfrom habana_frameworks import calls\n"
        "calls.append('core, lazy=' + os.environ.get('PT_HPU_LAZY_MODE', 'unset'))\n"
        "def mark_step():\n    calls.append('mark_step')\n"
    ),
    "torch/hpu.py": (
        "import habana_frameworks\nfrom habana_frameworks import calls\n"
        "def is_available():\n    return habana_frameworks.device\n"
        "def enable_dynamic_shape():\n    calls.append('enable_dynamic_shape')\n"
        "def disable_dynamic_shape():\n    calls.append('disable_dynamic_shape')\n"
        "def wrap_in_hpu_graph(module):\n"
        "    calls.append('wrap_in_hpu_graph')\n"
        "    def replay(*tensors):\n        calls.append('replay')\n        return module(*tensors)\n"
        "    return replay\n"
    ),
}


@pytest.fixture
def gaudi(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[], list[str]]]:
    """A plug-in that notes what it is asked; gives the notes."""
    for name, text in FAKE.items():
        file = tmp_path / "plugin" / "habana_frameworks" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    monkeypatch.syspath_prepend(tmp_path / "plugin")
    for name in [name for name in sys.modules if name.startswith("habana_frameworks")]:
        monkeypatch.delitem(sys.modules, name)
    for variable in (hpu.LAZY, *hpu.LISTS):
        monkeypatch.setenv(variable, "")  # so that what the policy sets is undone
        monkeypatch.delenv(variable)
    on_the_cpu(monkeypatch)
    yield lambda: sys.modules["habana_frameworks"].calls
    for name in [name for name in sys.modules if name.startswith("habana_frameworks")]:
        del sys.modules[name]


@pytest.mark.usefixtures("gaudi")
def test_looking_for_gaudi_settles_nothing() -> None:
    assert "hpu" in devices.here()
    assert devices.report()["hpu"] == "plug-in installed, lazy mode"
    assert not any(name.startswith("habana_frameworks") for name in sys.modules)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ["core, lazy=1", "disable_dynamic_shape", "wrap_in_hpu_graph", "replay", "replay"]),
        ({"hpu_graphs": False}, ["core, lazy=1", "disable_dynamic_shape", "mark_step", "mark_step"]),
        ({"lazy": False}, ["core, lazy=0"]),
        ({"gaudi_config": {"use_dynamic_shapes": True}, "hpu_graphs": False},
         ["core, lazy=1", "enable_dynamic_shape", "mark_step", "mark_step"]),
    ],
)  # fmt: skip
def test_gaudi_is_called_in_order(
    gaudi: Callable[[], list[str]], program: Path, options: dict[str, Any], expected: list[str]
) -> None:
    engine = open_graph(program, SIGNATURE, device="hpu", **options)
    for _ in range(2):
        np.testing.assert_array_equal(engine.run(rows(2))["y"], 2 * rows(2)["x"])
    assert gaudi() == expected


def test_gaudi_compiles_in_eager_mode(gaudi: Callable[[], list[str]]) -> None:
    policy = devices.policy_for("hpu", Wishes(compile="default"))
    assert policy.compile_options == {"backend": "hpu_backend"}
    assert gaudi() == ["core, lazy=0"]
    for wishes, message in (
        (Wishes(compile="default", lazy=True), "compile and lazy=True exclude each other"),
        (Wishes(lazy=False, hpu_graphs=True), "hpu_graphs=True needs lazy mode"),
    ):
        with pytest.raises(InputError, match=message):
            devices.policy_for("hpu", wishes)


def test_gaudi_follows_the_environment_and_cannot_change_its_mind(
    gaudi: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(hpu.LAZY, "0")
    assert devices.policy_for("hpu", Wishes()).after_run is not None
    assert gaudi() == ["core, lazy=0"]
    with pytest.raises(EngineError, match="PT_HPU_LAZY_MODE=1 is needed, but habana_frameworks was imported with 0"):
        devices.policy_for("hpu", Wishes(lazy=True))


@pytest.mark.usefixtures("gaudi")
def test_gaudi_splits_pads_and_leaves_out_the_first_runs(program: Path) -> None:
    engine = open_graph(program, SIGNATURE, device="hpu")
    sizes = []
    call = engine._call
    engine._call = lambda x: (sizes.append(len(x)), call(x))[1]  # type: ignore[misc]  # open, so not None
    np.testing.assert_array_equal(run_in_batches(engine, rows(9))["y"], 2 * rows(9)["x"])
    assert sizes == [2] * 5
    assert (engine.throughput.runs, engine.throughput.rows) == (5, 4)  # three runs of two are the warm-up


def test_throughput_leaves_out_the_warm_up() -> None:
    throughput = Throughput(warm_up_runs=3)
    for seconds in (100.0, 50.0, 10.0):
        throughput.add(2, seconds)
    assert throughput.rows_per_second is None
    throughput.add(2, 0.5)
    throughput.add(4, 0.5)
    assert throughput.rows_per_second == 6.0


@pytest.mark.parametrize("form", ["mapping", "file", "folder"])
@pytest.mark.usefixtures("gaudi")
def test_a_gaudi_configuration_sets_mixed_precision(tmp_path: Path, form: str) -> None:
    config = {
        "use_torch_autocast": True, "autocast_bf16_ops": ["linear", "conv2d"], "autocast_fp32_ops": ["softmax"],
        "use_fused_adam": True, "optimum_version": "1.21.2",
    }  # fmt: skip
    (tmp_path / "gaudi_config.json").write_text(json.dumps(config))
    given = {"mapping": config, "file": tmp_path / "gaudi_config.json", "folder": str(tmp_path)}[form]
    policy = devices.policy_for("hpu", Wishes(gaudi_config=given))
    assert policy.autocast == "bfloat16"
    assert [Path(os.environ[name]).read_text() for name in hpu.LISTS] == ["linear\nconv2d\n", "softmax\n"]
    folders = {Path(os.environ[name]).parent for name in hpu.LISTS}
    devices.policy_for("hpu", Wishes(gaudi_config=given))  # the bundle's next graph
    assert {Path(os.environ[name]).parent for name in hpu.LISTS} == folders
    for other in ({**config, "autocast_fp32_ops": ["exp"]}, {**config, "autocast_bf16_ops": []}):
        with pytest.raises(EngineError, match=r"lists autocast operators.* imported already with other lists"):
            devices.policy_for("hpu", Wishes(gaudi_config=other))
    assert {Path(os.environ[name]).parent for name in hpu.LISTS} == folders


@pytest.mark.usefixtures("gaudi")
def test_lists_of_operators_after_a_graph_without_them() -> None:
    devices.policy_for("hpu", Wishes())
    lists = {"autocast_bf16_ops": ["linear"], "autocast_fp32_ops": ["exp"]}
    with pytest.raises(EngineError, match="with other lists or none"):
        devices.policy_for("hpu", Wishes(gaudi_config=lists))


@pytest.mark.parametrize(
    ("wish", "only"),
    [({"tf32": True}, "cuda"), ({"lazy": False}, "hpu"), ({"hpu_graphs": True}, "hpu"), ({"gaudi_config": {}}, "hpu")],
)
def test_wishes_that_a_device_cannot_obey(wish: dict[str, Any], only: str) -> None:
    with pytest.raises(InputError, match=f"{next(iter(wish))} is for device='{only}', and this graph is opened on cpu"):
        devices.policy_for("cpu", Wishes(**wish))
    assert devices.policy_for("cpu", Wishes(tf32=False)).tf32 is None  # which the CPU has done already


@pytest.mark.parametrize("given", ["/nowhere/gaudi_config.json", {"autocast_bf16_ops": 3}])
def test_a_gaudi_configuration_that_is_none(given: Any) -> None:
    with pytest.raises(InputError, match=r"neither a mapping nor a gaudi_config\.json"):
        hpu.read_config(given)


@pytest.mark.usefixtures("gaudi")
def test_a_plug_in_without_a_gaudi(monkeypatch: pytest.MonkeyPatch) -> None:
    importlib.import_module("habana_frameworks").device = False  # type: ignore[attr-defined]  # the stand-in's
    with pytest.raises(EngineError, match="finds no Gaudi on this machine"):
        devices.policy_for("hpu", Wishes())
    monkeypatch.setitem(sys.modules, "habana_frameworks.torch.core", None)
    with pytest.raises(EngineError, match=r"cannot be imported: .*docs\.habana\.ai"):
        devices.policy_for("hpu", Wishes())
    assert "needs less memory" in str(hpu.explain(RuntimeError("synStatus 12: Allocation failed")))
    assert hpu.explain(RuntimeError("another")) is None


def test_the_loop_is_one_for_every_device() -> None:
    order: list[str] = []
    policy = Policy("cpu", before_run=lambda: order.append("before"), after_run=lambda: order.append("after"))
    engine = TorchEngine(lambda x: (order.append("graph"), (x * 2,))[1], SIGNATURE, policy)
    engine.run(rows(1))
    assert order == ["before", "graph", "after"]
