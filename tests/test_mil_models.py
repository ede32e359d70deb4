"""Whole models, converted by coremltools and evaluated from disk, answer what torch answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
import pytest
import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from ingot.exporters.capture import capture
from ingot.exporters.component import Component
from ingot.exporters.mil import Program, open_package
from ingot.exporters.trace import trace, trace_call
from ingot.runtimes.errors import InputError
from ingot.runtimes.metrics import compare

from . import mil_packages  # noqa: F401 - quietens coremltools

# Relative L2. Measured: 1.1e-6 for SDXL's UNet, 5e-7 to 7e-7 for the others.
FLOAT32 = 1e-5
Recorded = Callable[[str, str], Component]


def convert(exported: ExportedProgram, path: Path, precision: Any, target: Any, **options: Any) -> Program:
    """A package of a torch program, as coremltools makes it by default."""
    program = exported.run_decompositions({})
    graph = program.graph_module.graph
    for node in list(graph.nodes):  # coremltools 9 does not know aten.alias
        if node.op == "call_function" and "alias" in str(node.target):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
    ct.convert(
        program, compute_precision=precision, minimum_deployment_target=target, skip_model_load=True, **options
    ).save(str(path))
    return open_package(path)


def evaluate(program: Program, inputs: Mapping[str, torch.Tensor], float16: bool = False) -> list[np.ndarray[Any, Any]]:
    """The outputs in their order; scalars go in as arrays of one, as coremltools declares them."""
    arrays = [tensor.numpy().reshape(tensor.shape or (1,)) for tensor in inputs.values()]
    found = program.run({port.name: array for port, array in zip(program.inputs, arrays, strict=True)}, float16)
    return [found[port.name] for port in program.outputs]


@pytest.fixture(scope="module")
def component(request: pytest.FixtureRequest) -> Recorded:
    """A component of a tiny pipeline, recorded once."""
    recorded: dict[str, list[Component]] = {}

    def get(name: str, role: str) -> Component:
        if name not in recorded:
            recorded[name] = capture(request.getfixturevalue(f"tiny_{name}").pipe)
        (found,) = (item for item in recorded[name] if item.role == role)
        return found

    return get


MODELS = [
    ("sd", "vae_decoder", ct.target.iOS16),
    ("sdxl", "unet", ct.target.iOS18),
    ("controlnet", "controlnet", ct.target.iOS17),
]


@pytest.mark.parametrize(("name", "role", "target"), MODELS)
def test_model_in_float32(component: Recorded, tmp_path: Path, name: str, role: str, target: Any) -> None:
    piece = component(name, role)
    program = convert(trace(piece, static=True), tmp_path / "m.mlpackage", ct.precision.FLOAT32, target)
    call = trace_call(piece, static=True)
    for port, expected, found in zip(
        program.outputs, call.outputs.values(), evaluate(program, call.inputs), strict=True
    ):
        assert compare(expected.numpy(), found).rel_l2 < FLOAT32, port.name


def test_model_in_float16(component: Recorded, tmp_path: Path) -> None:
    piece = component("sd", "text_encoder")
    program = convert(trace(piece, static=True), tmp_path / "m.mlpackage", ct.precision.FLOAT16, ct.target.iOS16)
    call = trace_call(piece, static=True)
    weights, rounded = (evaluate(program, call.inputs, float16) for float16 in (False, True))
    for expected, stored, half in zip(call.outputs.values(), weights, rounded, strict=True):
        assert half.dtype == np.float16
        # 5e-4 and 8e-4 measured: stored weights alone, and every operation rounded too
        assert compare(expected.numpy(), stored).rel_l2 < 1e-3
        assert compare(expected.numpy(), half).rel_l2 < 2e-3
    assert not np.array_equal(weights[0], rounded[0])


class Resized(nn.Module):
    """A convolution, attention between its pixels, and an upsampling."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.norm = nn.GroupNorm(4, 8)
        self.query, self.key = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = nn.functional.silu(self.norm(self.down(x)))
        rows = y.flatten(2).transpose(1, 2)
        mixed = torch.softmax(self.query(rows) @ self.key(rows).transpose(1, 2), -1) @ rows
        y = mixed.transpose(1, 2).reshape(y.shape)
        return nn.functional.interpolate(y, scale_factor=2.0, mode="nearest")


SIZES = {
    "range": (ct.Shape((1, 3, ct.RangeDim(8, 32, 16), ct.RangeDim(8, 64, 16))), "[1, 3, 8..32, 8..64]", (1, 3, 12, 40)),
    "enumerated": (
        ct.EnumeratedShapes([[1, 3, 16, 16], [1, 3, 12, 8]], [1, 3, 16, 16]),
        "[1, 3, 12, 8] or [1, 3, 16, 16]",
        (1, 3, 12, 8),
    ),
}


@pytest.mark.parametrize("kind", SIZES)
def test_sizes_that_a_package_admits(tmp_path: Path, kind: str) -> None:
    shape, words, other = SIZES[kind]
    torch.manual_seed(0)
    model = Resized().eval()
    exported = torch.export.export(
        model, (torch.zeros(1, 3, 16, 16),), dynamic_shapes=({2: Dim.DYNAMIC, 3: Dim.DYNAMIC},)
    )
    options = {"inputs": [ct.TensorType("x", shape)]}
    program = convert(exported, tmp_path / "m.mlpackage", ct.precision.FLOAT32, ct.target.iOS17, **options)
    (port,) = program.inputs
    assert port.shape == (1, 3, 16, 16)
    assert sorted(port.sizes().split(" or ")) == sorted(words.split(" or "))
    for size in ((1, 3, 16, 16), other):
        x = torch.randn(size)
        (found,) = evaluate(program, {"x": x})
        assert compare(model(x).detach().numpy(), found).rel_l2 < FLOAT32
    with pytest.raises(InputError, match=r"'x' has shape \[1, 3, 40, 7\], not \[1, 3"):
        evaluate(program, {"x": torch.zeros(1, 3, 40, 7)})
