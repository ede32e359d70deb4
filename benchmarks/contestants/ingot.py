"""Ingot with a bundle: `options` go to `ingot.load`, `call` to the pipeline's call, on top of the job's."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .measure import Clock, Task

PACKAGES = ("ingot", "numpy")
# What an engine needs beside what `pip install ingot` brings, ONNX Runtime among it; a GPU's build stands in for that.
OF_ENGINE = {
    "coreml": ("coremltools",),
    "onnx": ("onnxruntime", "onnxruntime-gpu"),
    "openvino": ("openvino",),
    "tensorrt": ("tensorrt", "cuda-bindings"),
    "torch": ("torch",),
}
TILE = "tile"  # an option of ours: the side in pixels of the tiles that the VAE decodes in


def load_libraries(task: Task) -> None:
    """Ingot, and the engine where one is named."""
    import ingot
    from ingot.runtimes import engines, schedulers

    _ = ingot.load, schedulers.scheduler_class(task.scheduler)
    if engine := task.options.get("engine"):
        engines.engine(engine)


def sources() -> dict[str, list[str]]:
    """Ingot's folders, where it is installed where it is written."""
    from importlib import metadata

    import ingot.benchmarks
    import ingot.exporters
    import ingot.quantization
    import ingot.runtimes

    if any(str(file) == "ingot/cli.py" for file in metadata.distribution("ingot").files or ()):
        return {}
    packages = (ingot, ingot.benchmarks, ingot.exporters, ingot.quantization, ingot.runtimes)
    return {"ingot": [folder for package in packages for folder in package.__path__]}


def open_model(task: Task, clock: Clock) -> OpenedBundle:
    """The bundle's pipeline, with its engines and its scheduler on the clock."""
    return OpenedBundle(task, clock)


class OpenedBundle:
    """See `measure.Opened`."""

    def __init__(self, task: Task, clock: Clock) -> None:
        import ingot

        self.notes: list[str] = []
        self.latents: NDArray[np.float32] | None = None
        self.files: list[str] = []
        options = {"safety_checker": None, "device": "cpu", **task.options}
        tile = options.pop(TILE, None)
        _note_files(self.files)
        if (engine := options.get("engine")) and "threads" not in _taken(engine):
            self.notes.append(f"the engine {engine} takes no number of threads")
        else:
            options.setdefault("threads", task.threads)
        self.pipe = ingot.load(task.model, **options)
        used = self.pipe.choice.engine if self.pipe.choice else ""
        self.packages = (*PACKAGES, *OF_ENGINE.get(used, ()))
        if tile is not None:
            self.pipe.enable_vae_tiling(tile)
        self._set_scheduler(task.scheduler)
        for role, opened in self.pipe.engines.items():
            opened.run = clock.wrap("text_encoder" if role.startswith("text_encoder") else role, opened.run)
        # of the class: a call copies its scheduler, and a function on the copy would be the original's
        kind: Any = type(self.pipe.scheduler)
        kind.step = clock.wrap("scheduler", kind.step)
        self.notes += [*_device(self.pipe), *_precision(self.pipe, task)]
        self._call = {**_asked(task, self.pipe), **task.call}
        if self._has_preview():
            self.preview = self._preview

    def __call__(self, prompts: list[str], seeds: list[int], on_step: Callable[[], None]) -> NDArray[np.uint8]:
        """The pictures of these prompts with diffusers' noise for these seeds."""

        def ended(pipe: Any, step: int, timestep: float, values: dict[str, Any]) -> dict[str, Any]:  # noqa: ARG001
            self.latents = values["latents"]
            on_step()
            return {}

        self.pipe.forget_prompts()  # as the others, which encode a prompt at each call
        made = self.pipe(prompts, seed=seeds, progress=False, callback_on_step_end=ended, **self._call)
        return np.stack([np.asarray(picture) for picture in made.images])

    def _preview(self) -> None:
        self.pipe.preview(self.latents)

    def _has_preview(self) -> bool:
        """Bundles that were written before there was a map of their latents have none."""
        found = getattr(self.pipe, "_preview", None)
        return found is not None and found.file is not None

    def _set_scheduler(self, name: str) -> None:
        from ingot.runtimes.schedulers import from_config

        if name != self.pipe.scheduler.config["_class_name"]:
            self.pipe.scheduler = from_config({**self.pipe.scheduler.config, "_class_name": name})


def _asked(task: Task, pipe: Any) -> dict[str, Any]:
    """The job's part of a call."""
    asked = {
        "height": task.height, "width": task.width, "num_inference_steps": task.steps, "guidance_scale": task.guidance_scale,
    }  # fmt: skip
    known = inspect.signature(pipe.call_type).parameters
    return {name: value for name, value in asked.items() if name in known}


def _device(pipe: Any) -> list[str]:
    """A note where it is not the processor."""
    used = str(pipe.choice.device or "cpu") if pipe.choice else "cpu"
    return [] if used == "cpu" else [f"on the device {used}"]


def _precision(pipe: Any, task: Task) -> list[str]:
    """A note where OpenVINO does the denoiser's sums below float32: by itself it does so on processors that are made for it."""
    denoiser = next((pipe.engines[role] for role in ("unet", "transformer") if role in pipe.engines), None)
    compiled = getattr(denoiser, "_compiled", None)
    if compiled is None or not hasattr(compiled, "get_property"):  # another engine
        return []
    chosen = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
    who = "asked for" if "inference_precision" in task.options else "OpenVINO's own choice for this device"
    return [] if chosen == "f32" else [f"sums in {chosen}: {who}"]


def _taken(engine: str) -> set[str]:
    """The options of an engine."""
    from ingot.runtimes import engines

    return set(inspect.signature(engines.engine(engine).open_graph).parameters)


def _note_files(files: list[str]) -> None:
    """Have every file that is opened from now on listed: the graphs', whichever bundle they are of."""
    from ingot.runtimes import load

    honest = load.open_engine

    def open_engine(bundle: Any, graph: Any, **options: Any) -> Any:
        files.extend(
            str(Path(bundle.path) / file) for file in graph.files if str(Path(bundle.path) / file) not in files
        )
        return honest(bundle, graph, **options)

    load.open_engine = open_engine
