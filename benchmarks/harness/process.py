"""One measurement: a fresh process that is told what to do by a file, and answers with files."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from .machine import Busy
from .record import Contestant, Job, Run
from .request import resolved

BENCHMARKS = Path(__file__).parents[1]
_CODE = f"import sys; sys.path.append({str(BENCHMARKS)!r}); from contestants.measure import main; main()"
_QUIET = {
    "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TQDM_DISABLE": "1", "TOKENIZERS_PARALLELISM": "false",
    "OPENVINO_TELEMETRY": "0", "PYTHONWARNINGS": "ignore",
}  # fmt: skip
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS", "RAYON_NUM_THREADS")
_CLASS = re.compile(r"^[\w.]*(Error|Exception|Interrupt): ")


@dataclass(frozen=True)
class Answer:
    """What a process measured, or why it did not."""

    run: Run | None = None
    error: str | None = None
    notes: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    artifact_mb: float | None = None
    installed_mb: dict[str, float] = field(default_factory=dict)


def measure(
    one: Contestant,
    job: Job,
    folder: Path,
    *,
    round: int,
    calls: int,
    noise: Path,
    timeout: float,
    describe: bool = False,
) -> Answer:
    """Run a contestant at a job in a process of its own; what it writes stays in `folder`, which is made anew."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    task = {
        **msgspec.to_builtins(job), "kind": one.kind, "model": resolved(one.model), "options": one.options, "call": one.call,
        "noise": str(noise.absolute()), "calls": calls, "describe": describe,
    }  # fmt: skip
    with Busy() as busy:
        code = _wait(one, job, task, folder, timeout)
    result = folder / "result.json"
    late = f"stopped after {timeout:g} s, {_stage(folder)}; --timeout allows more"
    ended = late if code is None else _why(code, folder) if code else ""
    if not result.exists():
        return Answer(error=ended or _why(0, folder))
    found: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    described = {
        name: found.pop(name) for name in ("notes", "versions", "artifact_mb", "installed_mb") if name in found
    }
    if ended:  # its figures were written before that
        described["notes"] = [*described.get("notes", []), f"its process ended badly after its calls: {ended}"]
    try:
        return Answer(run=msgspec.convert({**found, "round": round, "busy": busy.share}, Run), **described)
    except msgspec.ValidationError as error:
        return Answer(error=f"its measurements are none: {error}")


def environment(threads: int, foreign: bool) -> dict[str, str]:
    """The variables of a process: so many threads, no network, no bars; another interpreter is not told our paths."""
    kept = {name: value for name, value in os.environ.items() if not (foreign and name in ("PYTHONPATH", "PYTHONHOME"))}
    kept.pop("PYTHONDONTWRITEBYTECODE", None)  # pip compiles what it installs; where Ingot is written, the warm-up does
    return {**kept, **_QUIET, **dict.fromkeys(_THREADS, str(threads))}


def _wait(one: Contestant, job: Job, task: dict[str, Any], folder: Path, timeout: float) -> int | None:
    """Its exit code; None where it took too long."""
    file = folder / "task.json"
    command = [one.python or sys.executable, "-P", "-c", _CODE, str(file.absolute()), str(folder.absolute())]
    with (folder / "stdout.txt").open("wb") as out, (folder / "stderr.txt").open("wb") as err:
        # times are of one clock for all processes: CLOCK_MONOTONIC counts from the machine's start
        file.write_text(json.dumps({**task, "spawned": time.monotonic()}), encoding="utf-8")
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=environment(job.threads, bool(one.python)),
            start_new_session=True,
        )  # fmt: skip
        try:
            return process.wait(timeout)
        except subprocess.TimeoutExpired:
            return None
        finally:  # it and what it started, after Ctrl-C too
            _kill(process)


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _why(code: int, folder: Path) -> str:
    """A process's end in one line: what it said last, how it ended, and during what."""
    text = (folder / "stderr.txt").read_text(encoding="utf-8", errors="replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    said = _CLASS.sub("", lines[-1]) if lines else ""
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        lack = ", as for lack of memory" if name == "SIGKILL" else ""
        return f"killed by {name}{lack}, {_stage(folder)}" + (f": {said}" if said else "")
    return f"{said or 'it said nothing'} ({_stage(folder)}; exit code {code})"


def _stage(folder: Path) -> str:
    file = folder / "stage.txt"
    return f"during {file.read_text(encoding='utf-8')}" if file.exists() else "before it began"
