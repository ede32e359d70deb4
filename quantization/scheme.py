"""The vocabulary of quantization: schemes by name, and what they are applied to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ingot.runtimes.signature import Signature


@dataclass(frozen=True)
class Scheme:
    """What weights are stored as, and how activations are rounded: not at all ("float"), by ranges found while the graph
    runs ("dynamic"), or by ranges recorded beforehand ("static")."""

    name: str
    weights: str
    activations: str
    summary: str

    @property
    def calibrated(self) -> bool:
        """Whether it needs recorded inputs."""
        return self.activations == "static"


SCHEMES = {
    scheme.name: scheme
    for scheme in (
        Scheme("int8-dynamic", "int8", "dynamic", "int8 weights, activations rounded as they come"),
        Scheme("int8-weights", "int8", "float", "int8 weights, computed in floats"),
        Scheme("int4-weights", "int4", "float", "int4 weights in groups, computed in floats"),
        Scheme("int8-static", "int8", "static", "int8 weights and activations, ranges from recorded trajectories"),
        Scheme("int8-hybrid", "int8", "static", "int8 weights everywhere, recorded int8 activations for one kind of layer"),
        Scheme("fp16", "float16", "float", "float16 weights"),
        Scheme("bf16", "bfloat16", "float", "bfloat16 weights"),
        Scheme("palette-8", "palette8", "float", "256 values to a tensor, found by k-means"),
        Scheme("palette-6", "palette6", "float", "64 values to a tensor, found by k-means"),
        Scheme("palette-4", "palette4", "float", "16 values to a tensor, found by k-means"),
        Scheme("fp8", "float8", "static", "float8 (e4m3) weights and activations"),
    )
}  # fmt: skip


@dataclass(frozen=True)
class Layer:
    """Something whose weight a scheme can quantize: by the model's own name for the module where the graph knows it
    ("down_blocks.0.resnets.0.conv1"), its kind (linear, conv, embedding, matmul), and how many weights it has."""

    name: str
    kind: str
    parameters: int


@dataclass(frozen=True)
class Source:
    """A float graph of a bundle: the file to open, what the manifest keeps of it, and its component's config."""

    role: str
    path: Path
    signature: Signature
    stored: Mapping[str, Any]
    dtype: str
    static: bool
    config: Mapping[str, Any]
