"""Compiled code: what Inductor makes computes what the model does, and is opened only where it is trusted and fits."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ingot.exporters import parity
from ingot.exporters.component import Component
from ingot.exporters.graph_file import GraphFile
from ingot.exporters.targets.torch import export
from ingot.runtimes.engines import _torch_code
from ingot.runtimes.engines._torch_archive import read_safetensors
from ingot.runtimes.engines.torch import open_graph
from ingot.runtimes.errors import EngineError, InputError

from .test_onnx_target import random_inputs
from .torch_cases import TOLERANCE, arrays, check_layouts, micro, opened, worst


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Component, GraphFile]:
    """`Micro` by AOTInductor."""
    component = micro()
    return component, export(component, tmp_path_factory.mktemp("graph") / "micro", format="aoti")


def test_compiled_ahead_of_time_equals_torch(compiled: tuple[Component, GraphFile]) -> None:
    component, graph = compiled
    certificate, _ = parity.check_file(component, "torch", graph)
    assert certificate.rel_l2 < TOLERANCE
    engine = opened(graph)
    for batch in (5, 1):
        inputs = random_inputs(component, batch=batch, height=9, width=7)
        assert worst(component.run(inputs), engine.run(arrays(inputs))) < TOLERANCE
    assert [path.name for path in graph.extra_files] == ["model.aoti.safetensors"]
    assert list(read_safetensors(graph.extra_files[0])) == [
        "source.conv.weight"
    ]  # Inductor writes short vectors into the code
    with zipfile.ZipFile(graph.path) as package:
        assert not [name for name in package.namelist() if name.endswith(".cpp")]


def test_compiled_code_takes_inputs_in_every_layout_that_numpy_has(compiled: tuple[Component, GraphFile]) -> None:
    check_layouts(*compiled)


def test_code_of_strangers_needs_trust(compiled: tuple[Component, GraphFile], monkeypatch: pytest.MonkeyPatch) -> None:
    component, graph = compiled
    monkeypatch.setattr(_torch_code, "_own", set())  # as another process would see it
    monkeypatch.delenv("INGOT_TRUST_CODE", raising=False)
    for trust in (None, False):
        with pytest.raises(EngineError, match=r"is machine code, .* say trust=True, or set INGOT_TRUST_CODE=1"):
            opened(graph, trust=trust)
    call = component.calls[0]
    assert worst(call.outputs, opened(graph, trust=True).run(arrays(call.inputs))) < TOLERANCE
    monkeypatch.setenv("INGOT_TRUST_CODE", "1")
    assert opened(graph)
    with pytest.raises(EngineError, match="machine code"):
        opened(graph, trust=False)  # what the caller says goes before the environment


ELSEWHERE = {
    "torch": ("2.1", r"torch 2\.1 \(here \d+\.\d+\)"),
    "machine": ("riscv64", r"machine riscv64 \(here"),
    "cpu": (["avx10.9"], r"a processor with avx10\.9"),
    "device": ("cuda", r"the device cuda \(asked for cpu\)"),
}


@pytest.mark.parametrize("key", ELSEWHERE)
def test_code_for_another_machine_is_refused(compiled: tuple[Component, GraphFile], key: str) -> None:
    _, graph = compiled
    value, message = ELSEWHERE[key]
    stored = {**graph.stored, key: value}
    with pytest.raises(EngineError, match=message + r".*--set torch\.format=aoti --set torch\.device=cpu"):
        open_graph(graph.path, graph.signature, stored=stored, device="cpu")


def test_compiled_code_takes_no_options_that_change_it(compiled: tuple[Component, GraphFile]) -> None:
    for option, value in {
        "compile": "default",
        "channels_last": True,
        "attention": "sliced",
        "autocast": "bfloat16",
    }.items():
        with pytest.raises(
            InputError, match=f"{option} cannot be chosen for model.aoti.pt2, which is compiled already"
        ):
            opened(compiled[1], **{option: value})


def test_compiling_for_a_gpu_needs_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="torch finds none here"):
        export(micro(), tmp_path / "micro", format="aoti", device="cuda")


def test_compiled_when_it_first_runs(tmp_path: Path) -> None:
    component = micro()
    graph = export(component, tmp_path)
    engine = opened(graph, compile="default")
    for call in component.calls:
        assert worst(call.outputs, engine.run(arrays(call.inputs))) < TOLERANCE
    assert engine.policy.one_at_a_time


@pytest.fixture(autouse=True, scope="module")
def _fresh_compilers() -> Iterator[None]:
    yield
    torch.compiler.reset()
