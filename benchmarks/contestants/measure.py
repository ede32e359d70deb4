"""One measurement, in a process of its own: reads TASK.json, times a contestant, writes result.json, pictures.npy, latents.npy.

Runs by any interpreter, Ingot or not: standard library and NumPy, beside what the contestant itself needs. A contestant is
a module here, or a file of the user's own, with

    PACKAGES: tuple[str, ...]           # distributions to tell the versions of, and the installed size with what they require
    def load_libraries() -> None        # every import that it needs: timed as import; may take the task, where that decides
    def open_model(task, clock)         # -> an `Opened`; timed as opening. ValueError(message) for what it cannot do
    def sources() -> dict[str, list[str]]   # optional: folders of a distribution that is installed where it is written

and what it opens calls `clock` around its parts: see `Opened` and `Clock`.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ._clock import Clock

if TYPE_CHECKING:  # NumPy is imported by the contestant, within what is timed
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Clock", "Opened", "Task", "main"]

STAGE = "stage.txt"  # what was under way: told when the process dies


@dataclass(frozen=True)
class Task:
    """What is asked: a job, a contestant, and how often."""

    kind: str  # a module of this folder, or a file
    model: str  # a bundle's or a checkpoint's folder, or a hub's name
    options: dict[str, Any]
    call: dict[str, Any]
    height: int  # pixels
    width: int
    batch: int  # pictures a call
    steps: int
    guidance_scale: float
    scheduler: str  # diffusers' class name
    threads: int
    seed: int
    prompts: list[str]
    noise: str  # .npy, float32 (pictures, channels, height / factor, width / factor): row i is of seed + i
    calls: int  # after the first; without any the first one's figures stand for theirs
    spawned: float  # time.monotonic() just before the process was started
    describe: bool = True  # whether versions and sizes are wanted too

    def of_call(self, number: int) -> tuple[list[str], list[int]]:
        """Prompts and seeds of a call: picture i of a run has prompt i, in turn, and the seed `seed` + i."""
        numbers = range(number * self.batch, (number + 1) * self.batch)
        return [self.prompts[i % len(self.prompts)] for i in numbers], [self.seed + i for i in numbers]

    def first_latents(self, seeds: list[int]) -> NDArray[np.float32]:
        """The first noise for these seeds, standard normal, for those who cannot draw diffusers' own."""
        import numpy as np

        drawn: NDArray[np.float32] = np.load(self.noise)
        return drawn[[seed - self.seed for seed in seeds]]


class Opened(Protocol):
    """A model, ready to be called."""

    notes: list[str]  # what differs from what was asked
    latents: NDArray[np.float32] | None  # of the last call, before the VAE: (pictures, channels, height / 8, width / 8)
    files: list[str]  # what was opened: files or folders, whose size is the artifact's

    # optional: def preview(self) -> None, a picture of the unfinished latents, called within `on_step`;
    # packages: tuple[str, ...] in place of the module's, where the options decide

    def __call__(self, prompts: list[str], seeds: list[int], on_step: Callable[[], None]) -> NDArray[np.uint8]:
        """Pictures (len(prompts), height, width, 3); calls `on_step` at the end of each step."""
        ...


class _EnoughError(Exception):
    """Ends a call that was only made for its first preview."""


def main() -> None:
    """`measure TASK.json OUTPUT_FOLDER`."""
    task_file, folder = Path(sys.argv[1]), Path(sys.argv[2])
    values = json.loads(task_file.read_text(encoding="utf-8"))
    known = {field.name for field in fields(Task)}
    task = Task(**{name: value for name, value in values.items() if name in known})
    stage = Stage(folder)
    stage("its imports")
    module = contestant(task.kind)
    load = module.load_libraries
    load(*[task][: load.__code__.co_argcount])
    imported = time.monotonic()
    stage("the opening of the model")
    clock = Clock()
    opened: Opened = module.open_model(task, clock)
    opening = {"import_s": imported - task.spawned, "open_s": time.monotonic() - imported}
    result = measured(task, clock, opened, folder, stage)
    # at once: what comes now costs no figure where the process dies of it
    _write(folder, {**opening, **result, "notes": list(opened.notes)})
    if task.calls:
        stage("the first preview")
        result["first_preview_s"] = first_preview(task, clock, opened)
    if task.describe:
        stage("the description of its installation")
        result |= described(module, opened)
    _write(folder, {**opening, **result})
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # all is written: what an engine does while it is torn down is no part of it


def contestant(kind: str) -> Any:
    """The module that a kind names."""
    if not kind.endswith(".py"):
        return importlib.import_module(f"{__package__}.{kind.replace('-', '_')}")
    spec = importlib.util.spec_from_file_location("contestant_of_the_user", kind)
    if spec is None or spec.loader is None:
        raise ValueError(f"{kind} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


class Stage:
    """Tells the parent what is under way."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / STAGE

    def __call__(self, what: str) -> None:
        """From now on it is this."""
        self._file.write_text(what, encoding="utf-8")


def measured(task: Task, clock: Clock, opened: Opened, folder: Path, stage: Stage) -> dict[str, Any]:
    """All calls: the first one's figures, a list of the others' (its own where it is alone), and all pictures and latents."""
    import numpy as np

    from ._process import Energy, gpu_peak_mib, peak_mib

    stage(f"the first of {task.calls + 1} calls")
    pictures = [_called(task, clock, opened, 0)]
    done = time.monotonic()
    first_image = clock.now()
    result: dict[str, Any] = {
        "first_step_s": clock.steps[0] if clock.steps else first_image,
        "first_image_s": first_image,
        "cold_start_s": done - task.spawned,
    }
    latents = [opened.latents]
    seconds: list[float] = []
    steps: list[float] = []
    host: list[float] = []
    components: list[dict[str, float]] = []
    energy = Energy()
    for number in range(1, task.calls + 1) or (0,):
        taken = first_image
        if number:
            stage(f"call {number + 1} of {task.calls + 1}")
            with energy:
                pictures.append(_called(task, clock, opened, number))
                taken = clock.now()
            latents.append(opened.latents)
        seconds.append(taken)
        components.append(clock.seconds())
        step, outside = clock.step_seconds(), clock.host_seconds()
        steps += [] if step is None else [step]
        host += [] if outside is None else [1000 * outside]
    roles = dict.fromkeys(role for one in components for role in one)
    result |= {
        "call_s": seconds,
        "step_s": steps,
        "host_ms_per_step": host,
        "component_s": {role: [one.get(role, 0.0) for one in components] for role in roles},
        "timeline": sorted(
            ((role, round(start, 6), round(end, 6)) for role, start, end in clock.spans), key=lambda span: span[1]
        ),
        "peak_mib": peak_mib(),
        "gpu_peak_mib": gpu_peak_mib(),
        "energy_j": energy.per_call(),
    }
    _save(folder, "pictures", np.concatenate(pictures))
    kept = [one for one in latents if one is not None]
    if len(kept) == len(latents):
        _save(folder, "latents", np.concatenate(kept))
    return result


def _called(task: Task, clock: Clock, opened: Opened, number: int) -> NDArray[np.uint8]:
    """One call's pictures. Raises ValueError for what are none."""
    prompts, seeds = task.of_call(number)
    clock.begin()
    made = opened(prompts, seeds, lambda: clock.steps.append(clock.now()))
    wanted = (len(prompts), task.height, task.width, 3)
    if made.shape != wanted or made.dtype.name != "uint8":
        raise ValueError(f"the contestant gave {made.dtype} {made.shape}, not pictures: uint8 {wanted}")
    return made


def first_preview(task: Task, clock: Clock, opened: Opened) -> float | None:
    """Seconds from a call's beginning to its first preview, or to the end of its first step; the rest is not run."""
    found: list[float] = []

    def on_step() -> None:
        if not found:
            preview = getattr(opened, "preview", None)
            if preview is not None:
                preview()
            found.append(clock.now())
        raise _EnoughError

    prompts, seeds = task.of_call(0)
    clock.begin()
    try:
        opened(prompts, seeds, on_step)
    except Exception as error:  # an engine may hand `_EnoughError` on as an error of its own
        if not found:
            opened.notes.append(f"no preview: {error}")
    return found[0] if found else None


def _write(folder: Path, result: dict[str, Any]) -> None:
    partial = folder / "result.json.part"
    partial.write_text(json.dumps(result), encoding="utf-8")
    partial.rename(folder / "result.json")


def _save(folder: Path, name: str, array: NDArray[Any]) -> None:
    import numpy as np

    np.save(folder / f"{name}.npy", array)


def described(module: Any, opened: Opened) -> dict[str, Any]:
    """What did the work, and how large it is."""
    from ._installed import installed_mb, size_mb, versions

    packages = tuple(getattr(opened, "packages", None) or module.PACKAGES)
    sources = getattr(module, "sources", None)
    return {
        "notes": list(opened.notes),
        "versions": versions(packages),
        "installed_mb": installed_mb(packages, sources() if sources else {}),
        "artifact_mb": size_mb(opened.files) if opened.files else None,
    }


if __name__ == "__main__":
    main()
