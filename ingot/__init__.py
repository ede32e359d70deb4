"""Ingot: cast diffusers checkpoints into verified graphs, and run them without PyTorch.

>>> import ingot
>>> ingot.export("shapes", "shapes-bundle")                                        # doctest: +SKIP
>>> pipe = ingot.load("shapes-bundle")                                             # doctest: +SKIP
>>> pipe("a large red ring on a blue background", seed=0).images[0].save("o.png")  # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ingot.benchmarks.harness.run import bench
    from ingot.exporters.add import add
    from ingot.exporters.attach import attach, detach
    from ingot.exporters.export import export
    from ingot.quantization.quantize import quantize
    from ingot.runtimes.bundle import Bundle
    from ingot.runtimes.errors import BundleError, EngineError, ExportError, IngotError, InputError, ParityError
    from ingot.runtimes.load import load
    from ingot.runtimes.noise import Generator
    from ingot.runtimes.verify import verify

__version__ = "0.1.0"
__all__ = [
    "Bundle", "BundleError", "EngineError", "ExportError", "Generator", "IngotError", "InputError", "ParityError",
    "add", "attach", "bench", "detach", "export", "load", "quantize", "verify",
]  # fmt: skip

_HOME = {
    "add": "exporters.add",
    "attach": "exporters.attach",
    "bench": "benchmarks.harness.run",
    "detach": "exporters.attach",
    "Bundle": "runtimes.bundle",
    "Generator": "runtimes.noise",
    "export": "exporters.export",
    "load": "runtimes.load",
    "quantize": "quantization.quantize",
    "verify": "runtimes.verify",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: running needs no torch, exporting no engine."""
    if name not in __all__:
        raise AttributeError(f"module 'ingot' has no attribute {name!r}; it has: {', '.join(__all__)}")
    try:
        value = getattr(importlib.import_module(f"ingot.{_HOME.get(name, 'runtimes.errors')}"), name)
    except ModuleNotFoundError as error:
        if name not in ("add", "attach", "detach", "export", "quantize") or (error.name or "").startswith("ingot"):
            raise
        from ingot.runtimes.errors import ExportError

        raise ExportError(f"{name} needs {error.name}, which is not installed: pip install 'ingot[export]'") from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
