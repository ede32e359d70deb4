"""Programs whose only open question is casts are translated to ONNX as they were traced; others as torch prepares them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from ingot.exporters.capture import capture
from ingot.exporters.onnx_graph import build
from ingot.exporters.onnx_lower import CASTS, Lowered, lowered
from ingot.exporters.trace import graph_signature, trace
from ingot.runtimes.signature import Signature, TensorSpec


def program_of(module: nn.Module) -> ExportedProgram:
    rows = torch.arange(12, dtype=torch.float32).reshape(4, 3) / 4
    return torch.export.export(module, (rows,), dynamic_shapes={"x": {0: Dim.DYNAMIC}}, strict=False)


def run(program: ExportedProgram, x: Tensor, folder: Path) -> np.ndarray[Any, Any]:
    signature = Signature((TensorSpec("x", "float32", ("batch", 3)),), (TensorSpec("y", "float32", ("batch", 3)),))
    model, _ = build(program, signature, 20)
    ir.save(model, folder / "model.onnx")
    (answer,) = ort.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"]).run(
        None, {"x": x.numpy()}
    )
    return np.asarray(answer)


class Casts(nn.Module):
    """Casts that matter, and one that does not."""

    def forward(self, x: Tensor) -> Tensor:
        return x.to(torch.float32) + x.to(torch.int64).to(torch.float32) + x.to("cpu", torch.float64).to(x.dtype)


class Writes(nn.Module):
    """Changes a tensor in place, which ONNX has no word for."""

    def forward(self, x: Tensor) -> Tensor:
        y = x * 2
        y.add_(1)
        return y


class Splits(nn.Module):
    """By an operator that the exporter has no translation for, and torch's table no decomposition."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat(torch.tensor_split(x, [1], dim=1)[::-1], dim=1)


@pytest.mark.parametrize(("module", "retraced"), [(Casts(), False), (Writes(), True), (Splits(), True)])
def test_a_program_is_traced_again_only_where_it_must(
    module: nn.Module, retraced: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again: list[bool] = []
    original = ExportedProgram.run_decompositions

    def counted(self: ExportedProgram, *args: Any, **options: Any) -> ExportedProgram:
        again.append(True)
        return original(self, *args, **options)

    monkeypatch.setattr(ExportedProgram, "run_decompositions", counted)
    x = torch.tensor([[-1.75, 0.5, 2.25], [3.5, -0.25, 1e6]])
    np.testing.assert_array_equal(run(program_of(module), x, tmp_path), module(x.clone()).numpy())
    assert bool(again) == retraced


def test_the_traced_program_stays_as_it_is() -> None:
    program = program_of(Casts())
    before = str(program.graph)
    changed = lowered(program)
    assert str(program.graph) == before
    assert not any(node.target in CASTS for node in changed.graph.nodes)
    torch.testing.assert_close(changed.module()(torch.ones(4, 3)), program.module()(torch.ones(4, 3)), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_components_of_stable_diffusion_are_not_traced_again(
    tiny_sd: Any, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any, **__: Any) -> Any:
        raise AssertionError("it was traced again")

    monkeypatch.setattr(ExportedProgram, "run_decompositions", refused)
    for component in capture(tiny_sd.pipe):
        program = trace(component, dtype)
        assert isinstance(lowered(program), Lowered)
        model, names = build(program, graph_signature(component, dtype), 20)
        assert len(model.graph)
        assert names
