"""The machine that a report is of, and how quiet it was: a fixed piece of arithmetic, and what other processes used."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import time
from pathlib import Path

import numpy as np

from .record import Machine, Noise

MOST_SPREAD = 0.10  # of the probe's times: what single-threaded arithmetic differs by on a quiet machine is 1 to 4 %
MOST_BUSY = 0.10  # of the whole machine, by other processes
_PROBES = 7
_FLAGS = (
    "avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16",
    "asimd", "asimddp", "i8mm", "bf16", "sve", "sve2",
)  # fmt: skip


def machine() -> Machine:
    """Where this process runs."""
    info = _cpuinfo()
    flags = set((info.get("flags") or info.get("Features") or "").split())
    return Machine(
        processor=info.get("model name") or platform.processor() or platform.machine(),
        cores=cores(),
        memory_gib=round(_memory_bytes() / 2**30, 1),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        flags=[flag for flag in _FLAGS if flag in flags],
        gpu=_gpu(),
        limit=_limit(),
    )


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def probe_ms() -> float:
    """Milliseconds that a fixed piece of arithmetic takes here and now, in one thread: the median of a few goes."""
    found = []
    for _ in range(_PROBES):
        began = time.perf_counter()
        _arithmetic()
        found.append(1000 * (time.perf_counter() - began))
    return statistics.median(found)


def _arithmetic() -> float:
    """Some of the interpreter's, some of NumPy's; neither takes a second thread."""
    total = 0
    for i in range(100_000):
        total += i * i & 1023
    values = np.arange(1.0, 60_001.0)
    for _ in range(20):
        values = np.sqrt(values * 1.5 + 1.0)
    return total + float(values[0])


class Busy:
    """What share of the machine other processes used while a block ran; this process and its children are left out."""

    share = 0.0

    def __enter__(self) -> Busy:
        self._began, self._machine, self._own = _now(), _machine_seconds(), _own_seconds()
        return self

    def __exit__(self, *_: object) -> None:
        machine_seconds = _machine_seconds()
        if machine_seconds is None or self._machine is None:
            return
        others = machine_seconds[0] - self._machine[0] - (_own_seconds() - self._own)
        whole = (_now() - self._began) * machine_seconds[1]
        # the kernel counts in hundredths: of a short block too coarsely to say anything
        self.share = min(1.0, max(0.0, others / whole)) if whole > 0.5 else 0.0


def noise(probes: list[float], busy: float) -> Noise:
    """The verdict on a machine by its probes in milliseconds and the largest share that others used."""
    spread = (max(probes) - min(probes)) / statistics.median(probes) if probes else 0.0
    why = []
    if spread > MOST_SPREAD:
        why.append(
            f"fixed arithmetic took {min(probes):.1f} to {max(probes):.1f} ms, {spread:.0%} apart (limit {MOST_SPREAD:.0%})"
        )
    if busy > MOST_BUSY:
        why.append(f"other processes used up to {busy:.0%} of the machine (limit {MOST_BUSY:.0%})")
    return Noise(probe_ms=probes, spread=spread, busy=busy, noisy=bool(why), why="; ".join(why))


def _now() -> float:
    return time.monotonic()


def _machine_seconds() -> tuple[float, int] | None:
    """Seconds that all processors together were not idle, and how many there are; None where /proc does not tell."""
    try:
        lines = Path("/proc/stat").read_text().splitlines()
    except OSError:
        return None
    values = [int(value) for value in lines[0].split()[1:9]]  # guests are in user already
    idle = values[3] + values[4]
    count = sum(line.startswith("cpu") for line in lines) - 1
    return (sum(values) - idle) / os.sysconf("SC_CLK_TCK"), count


def _own_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _cpuinfo() -> dict[str, str]:
    """Of the first processor."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return {}
    pairs = (line.partition(":") for line in text.split("\n\n")[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _memory_bytes() -> int:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([total, *_limits("memory.max", "memory/memory.limit_in_bytes")])


def _limit() -> str | None:
    """What would explain odd figures: a container's share of the processors, a governor."""
    found = []
    for name in ("cpu.max", "cpu/cpu.max"):
        words = _text(Path("/sys/fs/cgroup") / name).split()
        if len(words) == 2 and words[0] != "max":
            found.append(f"a container's limit of {int(words[0]) / int(words[1]):g} processors")
    quota, period = (_text(Path("/sys/fs/cgroup/cpu") / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period"))
    if quota.isdigit() and period.isdigit():
        found.append(f"a container's limit of {int(quota) / int(period):g} processors")
    if governor := _text(Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")).strip():
        found.append(f"governor {governor}")
    if "hypervisor" in _cpuinfo().get("flags", "").split():
        found.append("a virtual machine")
    return ", ".join(found) or None


def _limits(*names: str) -> list[int]:
    texts = (_text(Path("/sys/fs/cgroup") / name).strip() for name in names)
    return [int(text) for text in texts if text.isdigit()]


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""


def _gpu() -> str | None:
    """The name of an NVIDIA GPU and its driver; None without."""
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return None
    return "; ".join(told) or None
