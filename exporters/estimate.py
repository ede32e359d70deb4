"""What an export will need, told before it starts."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ingot.runtimes.errors import ExportError

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
# A parameter of the component at hand beside the model: its session; for float16 the halved copy, too, and the float32
# copies that ONNX Runtime makes on a CPU.
_BESIDE = {"float32": 4, "float16": 9, "bfloat16": 9}
_OVERHEAD_BYTES = 1.2e9  # the interpreter with torch, diffusers, transformers and ONNX Runtime, and small graphs
_DISK_MARGIN = 1.02  # graph structure and parity data beside the weights


@dataclass(frozen=True)
class Estimate:
    """Bytes of disk, and of memory at the peak."""

    parameters: int
    disk: int
    memory: int

    def __str__(self) -> str:
        return f"{self.parameters / 1e6:,.1f} M parameters: about {readable(self.disk)} of disk and {readable(self.memory)} of memory"


def estimate(pipe: Any, dtypes: Iterable[str]) -> Estimate:
    """From the parameter counts and each target's precision: the model itself in float32, and the engine that its largest
    component is held against.

    Stable Diffusion 1.5 (benchmarks/README.md): 8.9 GB by this and 8.6 measured in float32, 13.2 and 13.1 in float16.
    """
    counts = [
        sum(p.numel() for p in m.parameters()) for m in pipe.components.values() if isinstance(m, torch.nn.Module)
    ]
    dtypes = list(dtypes)
    disk = int(sum(counts) * sum(BYTES[dtype] for dtype in dtypes) * _DISK_MARGIN)
    beside = max(_BESIDE[dtype] for dtype in dtypes)
    memory = int(sum(counts) * 4 + max(counts, default=0) * beside + _OVERHEAD_BYTES)
    return Estimate(sum(counts), disk, memory)


def require_disk(folder: Path, needed: int) -> None:
    """Raise ExportError when the disk that holds `folder` has less than `needed` bytes free."""
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise ExportError(
            f"the bundle needs {readable(needed)} and the disk of {existing} has {readable(free)} free: make room or name another disk"
        )


def readable(size: float) -> str:
    """Bytes in the unit that fits: 3.4 GB."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"
