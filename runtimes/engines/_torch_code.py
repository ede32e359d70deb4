"""Compiled packages: machine code from a bundle, opened only for those who trust it, and only where it can run."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import EngineError
from ._torch_archive import read_safetensors

PACKAGE = "model.aoti.pt2"
WEIGHTS = "model.aoti.safetensors"
TRUST = "INGOT_TRUST_CODE"
# packages that this process compiled itself, by what no other file shares with them, their place aside
_own: set[tuple[int, int, int, int]] = set()


def remember_own(file: Path) -> None:
    """Trust a package that was compiled just now, so that parity may run it."""
    _own.add(_identity(file))


def require_trust(file: Path, trust: bool | None) -> None:
    """Refuse code that nobody vouched for. A bundle's hashes say that it is as it was written, not who wrote it."""
    if trust or (trust is None and (os.environ.get(TRUST) == "1" or _identity(file) in _own)):
        return
    raise EngineError(
        f"{file} is machine code, which runs with all your rights when it is opened; if you trust who made this bundle, "
        f"say trust=True, or set {TRUST}=1"
    )


def machine(device: str) -> dict[str, Any]:
    """What compiled code depends on: torch, and the processor or GPU that it is for."""
    version = ".".join(torch.__version__.split(".")[:2])
    made: dict[str, Any] = {"device": device, "torch": version, "system": platform.system().lower()}
    if device == "cuda":
        return made | {"gpu": _gpu()}
    return made | {"machine": platform.machine(), "cpu": cpu_features()}


def _gpu() -> str:
    return "{}.{}".format(*torch.cuda.get_device_capability()) if torch.cuda.is_available() else "none"


def cpu_features() -> list[str]:
    """The instruction sets that the compiler may have used: AOTInductor asks for all that the processor has."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return [torch.backends.cpu.get_cpu_capability().lower()]
    found = next((line.partition(":")[2].split() for line in lines if line.startswith(("flags", "Features"))), [])
    families = ("sse", "ssse", "avx", "amx", "fma", "bmi", "f16c", "popcnt", "sve", "asimd", "bf16", "i8mm")
    return sorted(name for name in found if name.startswith(families))


def require_machine(file: Path, stored: Mapping[str, Any], device: str) -> None:
    """Refuse a package that was compiled for something else. Raises EngineError saying for what, and what would do."""
    here = machine(stored.get("device", "cpu"))
    wrong = [
        f"{key} {stored[key]} (here {here[key]})"
        for key in ("torch", "system", "machine", "gpu")
        if key in stored and key in here and stored[key] != here[key]
    ]
    lacking = sorted(set(stored.get("cpu", ())) - set(here.get("cpu", ())))
    if lacking:
        wrong.append(f"a processor with {', '.join(lacking)}")
    if device.partition(":")[0] != stored.get("device", "cpu"):
        wrong.append(f"the device {stored.get('device', 'cpu')} (asked for {device})")
    if wrong:
        raise EngineError(
            f"{file} was compiled for {'; '.join(wrong)}. Export it here: ingot export MODEL --to torch --set "
            f"torch.format=aoti --set torch.device={device.partition(':')[0]}; or take a bundle with torch.format=exported, "
            "which runs on every device"
        )


class Compiled:
    """An AOTInductor package with its weights, called as a module is."""

    def __init__(self, file: Path, device: str) -> None:
        import torch._inductor  # seconds of imports that programs do not need

        index = torch.device(device).index
        try:
            self._model = torch._inductor.aoti_load_package(
                os.fspath(file), device_index=-1 if index is None else index
            )
            # kept here: the compiled code reads these tensors where they lie, on the CPU in the mapped file
            self.weights = {name: t.to(device) for name, t in read_safetensors(file.with_name(WEIGHTS)).items()}
            self._model.load_constants(self.weights, check_full_update=True, user_managed=True)
        except (RuntimeError, OSError) as error:
            raise EngineError(f"torch {torch.__version__} cannot open {file}: {error}") from error

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Run it; inputs in its own order and layout."""
        found: tuple[Tensor, ...] = self._model(*tensors)
        return found


def _identity(file: Path) -> tuple[int, int, int, int]:
    stat = file.stat()
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns
