"""Run a command and watch what it takes: wall-clock seconds, and the peak memory of it with all processes that it starts."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

HZ = 10.0
PROC = Path("/proc")


@dataclass(frozen=True)
class Watched:
    """What a command took. `peak_mib`: resident, processes together; 0 where the system has no /proc."""

    returncode: int
    output: str  # standard output and error together
    seconds: float
    peak_mib: float
    processor_s: float  # of all processors; 0 where the system does not tell


def watched(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Watched:
    """Run it to its end. Memory is the larger of two: the highest sum of a sample, and the highest mark of any one process."""
    began, used = time.monotonic(), _processor_s()
    process = subprocess.Popen(
        list(command), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        errors="replace", env=None if environment is None else dict(environment), start_new_session=True,
    )  # fmt: skip
    done, marks = threading.Event(), [0.0]
    sampler = threading.Thread(target=_sample, args=(process.pid, done, marks), daemon=True)
    sampler.start()
    try:
        output, _ = process.communicate()
    except BaseException:  # a key: the export goes with us, and all that it started
        _kill(process)
        raise
    finally:
        done.set()
        sampler.join()
    return Watched(process.returncode, output, time.monotonic() - began, max(marks), _processor_s() - used)


def _kill(process: subprocess.Popen[str]) -> None:
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    else:  # Windows
        process.kill()
    process.wait()


def _processor_s() -> float:
    """Of all children that have ended so far: what runs beside a command must not be a child of ours."""
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _sample(pid: int, done: threading.Event, marks: list[float]) -> None:
    while not done.wait(1 / HZ):
        seen = [_memory(one) for one in _tree(pid)]
        marks.append(sum(now for now, _ in seen))
        marks.append(max((highest for _, highest in seen), default=0.0))
        marks[:] = [max(marks)]


def _tree(pid: int) -> list[int]:
    """A process and all its children's children."""
    left, found = [pid], []
    while left:
        one = left.pop()
        found.append(one)
        for task in (PROC / str(one) / "task").glob("*/children"):
            try:
                left += [int(child) for child in task.read_text().split()]
            except OSError:  # ended meanwhile
                continue
    return found


def _memory(pid: int) -> tuple[float, float]:
    """MiB resident now, and at most so far."""
    try:
        status = (PROC / str(pid) / "status").read_text()
    except OSError:
        return 0.0, 0.0
    lines = dict(line.split(":", 1) for line in status.splitlines() if line.startswith(("VmRSS", "VmHWM")))
    now, highest = (float(lines.get(name, "0").split()[0]) / 1024 for name in ("VmRSS", "VmHWM"))
    return now, highest
