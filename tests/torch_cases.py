"""A component small enough to compile in a test, and how the torch tests open and compare."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from ingot.exporters.component import Call, Component, FlatModule, Slot
from ingot.exporters.graph_file import GraphFile
from ingot.runtimes.engines.torch import TorchEngine, open_graph
from ingot.runtimes.metrics import compare
from ingot.runtimes.signature import Signature, TensorSpec

# The same ATen kernels on the same machine: equal, but for sums that Inductor, channels-last or slices order otherwise
# (1e-7 to 1e-6 here; the limit of a certificate is 1e-4).
TOLERANCE = 1e-5


Export = Callable[..., tuple[Component, GraphFile]]


class Micro(nn.Module):
    """A convolution, attention over its pixels, and a constant made on a device: small enough to compile in a test."""

    config: ClassVar[dict[str, Any]] = {}

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 8, 3, padding=1)
        self.unused = nn.Linear(3, 3)

    def forward(self, x: Tensor, timestep: Tensor) -> dict[str, Tensor]:
        """(batch, 4, height, width) to (batch, 8, height, width), and the input again."""
        y = torch.nn.functional.silu(self.conv(x)) + torch.arange(8, device=x.device)[:, None, None] * timestep
        flat = y.flatten(2).transpose(1, 2)[:, None]
        seen = torch.nn.functional.scaled_dot_product_attention(flat, flat, flat)[:, 0]
        return {"y": seen.transpose(1, 2).unflatten(2, (x.shape[2], x.shape[3])), "again": x}


def micro() -> Component:
    """The component that a capture of `Micro` at two sizes would give."""
    torch.manual_seed(5)
    source = Micro().eval()
    module = FlatModule(source, "forward", {"x": Slot("x"), "timestep": Slot("timestep")}, ("x", "timestep"))
    shape = ("batch", 4, "height", "width")
    spec = Signature(
        (TensorSpec("x", "float32", shape), TensorSpec("timestep", "float32", ())),
        (TensorSpec("y", "float32", ("batch", 8, "height", "width")), TensorSpec("again", "float32", shape)),
    )
    calls = []
    for size in ((2, 4, 6, 10), (3, 4, 8, 4)):
        inputs = {"x": torch.randn(size), "timestep": torch.tensor(0.5)}
        with torch.no_grad():
            calls.append(Call(inputs, source(**inputs)))
    return Component("micro", source, module, tuple(calls), spec)


def opened(graph: GraphFile, **options: Any) -> TorchEngine:
    return open_graph(graph.path, graph.signature, stored=graph.stored, **{"device": "cpu", **options})


def arrays(tensors: dict[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in tensors.items()}


def worst(expected: dict[str, Tensor], found: dict[str, np.ndarray]) -> float:
    assert list(found) == list(expected)
    return max(compare(tensor.numpy(), found[name]).rel_l2 for name, tensor in expected.items())


def check_layouts(component: Component, graph: GraphFile) -> None:
    """The same numbers for the same values, however NumPy lays them out, and no warning."""
    engine, call = opened(graph), component.calls[0]
    x, timestep = call.inputs["x"].numpy(), np.asarray(np.float32(0.5))
    frozen = x.copy()
    frozen.flags.writeable = False
    innermost = np.moveaxis(np.moveaxis(x, 1, 3).copy(), 3, 1)
    flipped, every_second = np.flip(np.flip(x, 2).copy(), 2), np.repeat(x, 2, 3)[..., ::2]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for form in (x, frozen, flipped, innermost, every_second, np.asfortranarray(x), x.astype(np.float64)):
            assert worst(call.outputs, engine.run({"x": form, "timestep": timestep})) < TOLERANCE
