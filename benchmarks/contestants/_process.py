"""What a process can tell of itself: its peak memory, a GPU's, and the energy of the processor's package."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType

POWERCAP = Path("/sys/class/powercap")


def peak_mib() -> float:
    """Peak resident memory. Where Linux tells it, not getrusage's, which counts the parent before exec."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(next(line for line in status.read_text().splitlines() if line.startswith("VmHWM")).split()[1]) / 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def gpu_peak_mib() -> float | None:
    """Of a GPU: torch's own peak where it was used, else what nvidia-smi says that this process holds; None without."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        return float(torch.cuda.max_memory_reserved()) / 2**20
    if not Path("/dev/nvidiactl").exists():
        return None
    command = ["nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return next((float(line.split(",")[1]) for line in listed.splitlines() if line.startswith(f"{os.getpid()},")), None)


class Energy:
    """The joules of the processor's packages while the block runs, by RAPL; nothing where it cannot be read."""

    def __init__(self, powercap: Path = POWERCAP) -> None:
        self._packages = [folder for folder in sorted(powercap.glob("intel-rapl:*")) if folder.name.count(":") == 1]
        self._joules: list[float] = []
        self._before: list[int] | None = None

    def per_call(self) -> float | None:
        """The mean over the blocks; None where a counter could not be read."""
        return sum(self._joules) / len(self._joules) if self._joules else None

    def __enter__(self) -> Energy:
        self._before = self._read()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        after = self._read()
        if self._before and after:
            self._joules.append(
                sum(self._used(*pair) for pair in zip(self._packages, self._before, after, strict=True))
            )

    def _read(self) -> list[int] | None:
        try:
            return [int((folder / "energy_uj").read_text()) for folder in self._packages]
        except (OSError, ValueError):  # for the administrator only, on most systems
            return None

    def _used(self, folder: Path, before: int, after: int) -> float:
        """Microjoules wrap around, as often as every few minutes."""
        if after < before:
            after += int((folder / "max_energy_range_uj").read_text())
        return (after - before) / 1e6
