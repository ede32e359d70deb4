"""How far ONNX Runtime rewrites a graph when it opens it."""

from __future__ import annotations

from pathlib import Path

import onnxruntime as ort

from ..errors import unknown

LEVELS = {
    "disable": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
AUTO = "auto"
# Bytes of weights beyond which "auto" is "extended" on a processor. "all" copies the weights of float convolutions into blocks
# of channels, one after another: Stable Diffusion 1.5's UNet opens in 13 s in place of 4, and its calls are 6 % faster
# (benchmarks/README.md).
LARGE = 1 << 30


def optimization_level(name: str | None, file: Path | None) -> ort.GraphOptimizationLevel:
    """What the caller named, "all" for None; "auto" goes by the weights of the file that a processor is to run.

    Raises InputError for an unknown name.
    """
    if name == AUTO:
        name = "all" if file is None or _weights(file) <= LARGE else "extended"
    if name not in (None, *LEVELS):
        raise unknown("graph_optimization_level", name, (AUTO, *LEVELS))
    return LEVELS[name or "all"]


def _weights(file: Path) -> int:
    """Bytes of a graph and of the files of weights beside it, which may be other graphs' too."""
    return sum(one.stat().st_size for one in (file, *file.parent.glob("*_data")) if one.exists())
