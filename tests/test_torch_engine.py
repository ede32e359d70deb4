"""The torch engine: layouts, threads, process-wide settings, ownership, errors."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ingot.exporters.component import Component
from ingot.exporters.graph_file import GraphFile
from ingot.exporters.targets.torch import export
from ingot.runtimes.devices.policy import Policy, Wishes
from ingot.runtimes.engines import run_in_batches
from ingot.runtimes.engines._torch_attention import attend, sliced_attention
from ingot.runtimes.engines._torch_settings import Switch, thread_count
from ingot.runtimes.engines.torch import PARITY_OPTIONS, TorchEngine, devices, open_graph, report
from ingot.runtimes.errors import EngineError, InputError
from ingot.runtimes.metrics import compare
from ingot.runtimes.signature import Signature, TensorSpec

from .test_onnx_target import random_inputs
from .torch_cases import TOLERANCE, arrays, check_layouts, micro, opened, worst


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Component, GraphFile]:
    """`Micro` as a program."""
    component = micro()
    return component, export(component, tmp_path_factory.mktemp("graph") / "micro")


@pytest.mark.parametrize("mask", [None, (2, 1, 7, 9), (7, 9)], ids=["none", "batch", "broadcast"])
@pytest.mark.parametrize("rows", [1, 3, 7, 16])
def test_sliced_attention_is_attention(mask: tuple[int, ...] | None, rows: int) -> None:
    generator = torch.Generator().manual_seed(rows)
    query, key, value = (torch.randn(2, 3, n, 8, generator=generator) for n in (7, 9, 9))
    seen = None if mask is None else torch.rand(mask, generator=generator) > 0.3
    if seen is not None:
        seen[..., 0] = True  # a query that sees nothing is 0/0
    expected = attend(query, key, value, seen)
    found = sliced_attention(query, key, value, seen, slice_bytes=rows * 9 * 4)
    assert compare(expected.numpy(), found.numpy()).rel_l2 < 1e-6  # the same additions, in another blocking
    scaled = sliced_attention(query, key, value, seen, scale=0.3, slice_bytes=rows * 9 * 4)
    assert compare(attend(query, key, value, seen, scale=0.3).numpy(), scaled.numpy()).rel_l2 < 1e-6
    causal = sliced_attention(query, key[:, :, :7], value[:, :, :7], None, 0.0, True, slice_bytes=rows)
    np.testing.assert_array_equal(causal, attend(query, key[:, :, :7], value[:, :, :7], None, 0.0, True))


@pytest.mark.parametrize("longer_than", [0, 100], ids=["sliced", "whole"])
@pytest.mark.parametrize(
    ("key", "value", "mask", "message"),
    [
        ((1, 2, 3, 8), (1, 2, 400, 8), None, r"\[1, 2, 3, 8\], \[1, 2, 400, 8\] do not fit each other"),
        ((1, 2, 9, 4), (1, 2, 9, 8), None, "do not fit each other"),
        ((1, 2, 9, 8), (1, 2, 9, 8), (4, 8), r"a mask of \[4, 8\] does not fit"),
        ((1, 2, 9, 8), (1, 2, 9, 8), (1, 3, 4, 9), r"a mask of \[1, 3, 4, 9\] does not fit"),
    ],
)
def test_attention_of_sizes_that_do_not_fit_is_refused(
    key: tuple[int, ...], value: tuple[int, ...], mask: tuple[int, ...] | None, message: str, longer_than: int
) -> None:
    """On tensors without memory: torch's own kernel would read past the end of the keys."""
    q, k, v = (torch.zeros(size, device="meta") for size in ((1, 2, 4, 8), key, value))
    seen = None if mask is None else torch.zeros(mask, device="meta")
    whole = r"aten\.scaled_dot_product_attention\.default: .*"
    with pytest.raises(EngineError, match=whole + message):
        attend(q, k, v, seen)
    with pytest.raises((EngineError, RuntimeError)):  # expand() refuses masks before attention does
        sliced_attention(q, k, v, seen, longer_than=longer_than)


def test_attention_is_sliced_from_a_length_on(monkeypatch: pytest.MonkeyPatch) -> None:
    from ingot.runtimes.engines import _torch_attention

    lengths: list[int] = []

    def counting(*args: Any, **kwargs: Any) -> Tensor:
        lengths.append(args[0].shape[-2])
        return attend(*args, **kwargs)

    monkeypatch.setattr(_torch_attention, "attend", counting)
    query = torch.randn(1, 2, 8, 4)
    for longer_than, calls in ((8, [8]), (7, [4, 4, 4, 4])):
        lengths.clear()
        sliced_attention(query, query, query, longer_than=longer_than, slice_bytes=4 * 8 * 4)
        assert lengths == calls


def test_autocast_computes_in_bfloat16_and_answers_in_float32(small: tuple[Component, GraphFile]) -> None:
    component, graph = small
    call = component.calls[0]
    found = opened(graph, autocast="bfloat16").run(arrays(call.inputs))
    assert found["y"].dtype == np.float32
    assert 1e-4 < compare(call.outputs["y"].numpy(), found["y"]).rel_l2 < 8e-2


def identity(policy: Policy, seen: Callable[[], Any] = lambda: None) -> tuple[TorchEngine, list[Any]]:
    """An engine around a function that notes what it sees while it runs."""
    notes: list[Any] = []
    spec = Signature((TensorSpec("x", "float32", ("n",)),), (TensorSpec("y", "float32", ("n",)),))

    def call(x: Tensor) -> tuple[Tensor]:
        notes.append(seen())
        return (x,)

    return TorchEngine(call, spec, policy), notes


def test_threads_and_tf32_hold_for_the_run_and_no_longer() -> None:
    matmul = torch.backends.cuda.matmul
    before = torch.get_num_threads(), matmul.fp32_precision
    for policy, expected in (
        (Policy("cpu", threads=before[0] + 1), (before[0] + 1, before[1])),
        (Policy("cpu", tf32=True), (before[0], "tf32")),
        (Policy("cpu", tf32=False), (before[0], "ieee")),
        (Policy("cpu"), before),
    ):
        engine, notes = identity(policy, lambda: (torch.get_num_threads(), matmul.fp32_precision))
        engine.run({"x": np.zeros(2, np.float32)})
        assert notes == [expected]
        assert (torch.get_num_threads(), matmul.fp32_precision) == before
    with pytest.raises(EngineError):  # put back after a failure too
        TorchEngine(lambda x: x.no_such_thing, engine.signature, Policy("cpu", tf32=True)).run(
            {"x": np.zeros(2, np.float32)}
        )
    assert matmul.fp32_precision == before[1]


def test_runs_that_want_a_process_wide_value_differently_wait_for_each_other() -> None:
    value = {"now": "before"}
    switch = Switch(lambda: value["now"], lambda wanted: value.update(now=wanted))
    entered, let_go = threading.Event(), threading.Event()
    order: list[str] = []

    def hold() -> None:
        with switch.held_at("a"):
            entered.set()
            let_go.wait(10)
            order.append("a")

    def other() -> None:
        with switch.held_at("b"):
            order.append(value["now"])

    first = threading.Thread(target=hold)
    first.start()
    assert entered.wait(10)
    with switch.held_at("a"), switch.held_at(None):  # those that agree, and those that do not care, run beside it
        assert value["now"] == "a"
    second = threading.Thread(target=other)
    second.start()
    second.join(0.05)
    assert second.is_alive()
    let_go.set()
    first.join(10)
    second.join(10)
    assert order == ["a", "b"]
    assert value["now"] == "before"


def test_outputs_belong_to_the_caller(small: tuple[Component, GraphFile]) -> None:
    component, graph = small
    engine = opened(graph)
    first = arrays(component.calls[0].inputs)
    found = engine.run(first)
    kept = {name: array.copy() for name, array in found.items()}
    assert not np.shares_memory(found["again"], first["x"])  # an output that is the input
    engine.run({"x": np.ones_like(first["x"]), "timestep": first["timestep"]})
    found["y"] += 0  # writable
    assert all(np.array_equal(found[name], array) for name, array in kept.items())


def test_an_output_that_is_a_weight_belongs_to_the_caller(tmp_path: Path) -> None:
    class Weight(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3), requires_grad=False)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x + self.weight, self.weight[1:]

    torch.export.save(torch.export.export(Weight(), (torch.ones(3),)), tmp_path / "model.pt2")
    specs = TensorSpec("y", "float32", (3,)), TensorSpec("weight", "float32", (2,))
    engine = open_graph(tmp_path / "model.pt2", Signature((TensorSpec("x", "float32", (3,)),), specs), device="cpu")
    for _ in range(2):
        found = engine.run({"x": np.zeros(3, np.float32)})
        assert (found["y"].tolist(), found["weight"].tolist()) == ([1, 1, 1], [1, 1])
        found["weight"] += 5


def test_parity_opens_code_where_it_was_compiled_for(monkeypatch: pytest.MonkeyPatch) -> None:
    from ingot.runtimes import devices as kinds

    asked: list[tuple[Any, Any]] = []

    def noted(device: str | None, wishes: Wishes) -> Policy:
        asked.append((device, wishes.tf32))
        raise InputError("enough")

    monkeypatch.setattr(kinds, "policy_for", noted)
    signature = Signature((), ())
    for stored in (
        {"format": "aoti", "device": "cuda"},
        {"format": "aoti", "device": "cpu"},
        {"format": "exported"},
        {},
    ):
        with pytest.raises(InputError, match="enough"):
            open_graph(Path("model.pt2"), signature, stored=stored, **PARITY_OPTIONS)
    assert asked == [("cuda", False), ("cpu", False), ("cpu", None), ("cpu", None)]


def test_threads_that_overlap_each_get_their_number_back() -> None:
    before = torch.get_num_threads()
    seen: dict[str, tuple[int, int]] = {}
    inside, go = threading.Barrier(3), {name: threading.Event() for name in ("first", "second")}

    def work(name: str) -> None:
        with thread_count(before + 2):
            inside.wait(10)
            within = torch.get_num_threads()
            go[name].wait(10)
        seen[name] = within, torch.get_num_threads()

    workers = {name: threading.Thread(target=work, args=(name,)) for name in go}
    for worker in workers.values():
        worker.start()
    inside.wait(10)
    for name, worker in workers.items():  # one leaves while the other stays
        go[name].set()
        worker.join(10)
    assert seen == dict.fromkeys(go, (before + 2, before))
    assert torch.get_num_threads() == before


def test_inputs_in_every_layout_that_numpy_has(small: tuple[Component, GraphFile]) -> None:
    component, graph = small
    check_layouts(component, graph)


def test_several_threads_get_what_each_asked_for(small: tuple[Component, GraphFile]) -> None:
    component, graph = small
    engine = opened(graph)
    wanted = [random_inputs(component, batch=n, height=8, width=8) for n in (1, 2, 3, 4)]
    expected = [component.run(inputs) for inputs in wanted]
    far = [1.0] * len(wanted)

    def work(index: int) -> None:
        far[index] = max(worst(expected[index], engine.run(arrays(wanted[index]))) for _ in range(3))

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(wanted))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert max(far) < TOLERANCE


def test_one_at_a_time_where_the_device_wants_it() -> None:
    inside, most = [0], [0]

    def call(x: Tensor) -> tuple[Tensor]:
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        time.sleep(0.01)
        inside[0] -= 1
        return (x * 1,)

    engine, _ = identity(Policy("cpu", one_at_a_time=True))
    engine._call = call
    threads = [threading.Thread(target=engine.run, args=({"x": np.zeros(2, np.float32)},)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert most == [1]


def test_rows_are_split_and_the_last_part_padded() -> None:
    sizes: list[int] = []
    for pad, expected in ((False, [2, 2, 1]), (True, [2, 2, 2])):
        engine, _ = identity(Policy("cpu", most_rows=2, pad=pad))
        engine._call = lambda x: (sizes.append(len(x)), (x * 2,))[1]
        sizes.clear()
        found = run_in_batches(engine, {"x": np.arange(5, dtype=np.float32)})
        assert sizes == expected
        np.testing.assert_array_equal(found["y"], 2 * np.arange(5, dtype=np.float32))


def test_a_closed_graph_says_so(small: tuple[Component, GraphFile]) -> None:
    component, graph = small
    engine = opened(graph)
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="was closed; open it again"):
        engine.run(arrays(component.calls[0].inputs))


def test_a_failure_says_on_what_and_with_which_shapes() -> None:
    engine, _ = identity(Policy("cpu", explain=lambda error: f"{type(error).__name__} is no good"))
    engine._call = lambda x: x @ x[:1]
    with pytest.raises(EngineError, match=r"on cpu with {'x': \[3\]}: .*; RuntimeError is no good"):
        engine.run({"x": np.zeros(3, np.float32)})


BAD = {
    "compile": ("fast", "unknown compile mode 'fast'; available: default, max-autotune"),
    "attention": ("flash", "unknown attention 'flash'; available: sdpa, sliced"),
    "autocast": ("int8", "unknown autocast precision 'int8'; available: bfloat16, float16"),
    "threads": (0, "threads=0: a whole number of at least 1"),
    "most_rows": (1.5, r"most_rows=1\.5: a whole number"),
    "device": ("abacus", "unknown device 'abacus' for torch; available here: .*cpu"),
}


@pytest.mark.parametrize("option", BAD)
def test_bad_options_are_answered_with_good_ones(small: tuple[Component, GraphFile], option: str) -> None:
    _, graph = small
    value, message = BAD[option]
    with pytest.raises(InputError, match=message):
        opened(graph, **{option: value})


def test_devices_that_are_not_here(small: tuple[Component, GraphFile], monkeypatch: pytest.MonkeyPatch) -> None:
    from ingot.runtimes.devices import cuda, hpu, mps

    for kind in (cuda, hpu, mps):
        monkeypatch.setattr(kind, "present", list)
    _, graph = small
    for device, how in (("cuda", "needs an NVIDIA GPU"), ("mps", "Apple silicon"), ("hpu", "habana-torch-plugin")):
        with pytest.raises(EngineError, match=f"no device {device} on this machine; it has: cpu. .*{how}"):
            opened(graph, device=device)
        assert report()[device].startswith("not here: ")
    assert devices() == ["cpu"]
    assert report()["version"] == torch.__version__


def test_signatures_are_checked_as_everywhere(small: tuple[Component, GraphFile]) -> None:
    component, graph = small
    engine, good = opened(graph), arrays(component.calls[0].inputs)
    for change, message in (
        ({"x": good["x"].astype(np.int64)}, "'x' is int64, not float32"),
        ({"x": good["x"][0]}, "'x' has shape"),
        ({"y": good["x"]}, "unknown input 'y'"),
    ):
        with pytest.raises(InputError, match=message):
            engine.run({**good, **change})
    with pytest.raises(InputError, match="missing input 'timestep'"):
        engine.run({"x": good["x"]})
    assert SimpleNamespace(**report()).version == torch.__version__
