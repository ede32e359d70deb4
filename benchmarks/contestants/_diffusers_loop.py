"""What the baselines share that run in diffusers' own loop: diffusers itself, and optimum's pipelines, which inherit it."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # both are imported by a contestant, within what is timed
    import numpy as np
    from numpy.typing import NDArray

    from .measure import Clock, Task

KNOWN = ("StableDiffusionPipeline", "StableDiffusionXLPipeline", "LatentConsistencyModelPipeline")


class Loop:
    """A pipeline with diffusers' `__call__`, ready to be called: see `measure.Opened`."""

    packages: tuple[str, ...] = ()  # the module's own, unless options want others

    def __init__(self, pipe: Any, task: Task, files: list[str], notes: Iterable[str] = ()) -> None:
        self.notes, self.files = list(notes), files
        self._pipe, self._task = pipe, task
        self._latents: Any = None

    @property
    def latents(self) -> NDArray[np.float32] | None:
        """What `output_type="latent"` would have given."""
        found: NDArray[np.float32] | None = None if self._latents is None else self._latents.float().cpu().numpy()
        return found

    def __call__(self, prompts: list[str], seeds: list[int], on_step: Callable[[], None]) -> NDArray[np.uint8]:
        """Pictures (len(prompts), height, width, 3), rounded as diffusers rounds them."""
        import torch

        def after_step(_pipe: Any, _step: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            self._latents = tensors["latents"]
            synchronize(task)
            on_step()
            return {}

        task, generators = self._task, [torch.Generator().manual_seed(seed) for seed in seeds]
        made = self._pipe(
            prompts, height=task.height, width=task.width, num_inference_steps=task.steps,
            guidance_scale=task.guidance_scale, generator=generators, output_type="np",
            callback_on_step_end=after_step, callback_on_step_end_tensor_inputs=["latents"], **task.call,
        ).images  # fmt: skip
        rounded: NDArray[np.uint8] = (made * 255).round().astype("uint8")
        return rounded


def check(task: Task, options: Iterable[str]) -> str:
    """The pipeline's class. Raises ValueError for one that the baselines are not written for, and for an unknown option."""
    index = Path(task.model, "model_index.json")
    if not index.is_file():
        raise ValueError(f"{task.model} is no checkpoint: it has no model_index.json")
    found = str(json.loads(index.read_text(encoding="utf-8")).get("_class_name"))
    if _plain(found) not in KNOWN:
        raise ValueError(f"{task.kind} is not asked for a {found}; it is for {', '.join(KNOWN)}")
    wrong = sorted(set(task.options) - {"weights", *options})
    if wrong:
        raise ValueError(f"{task.kind} has no option {', '.join(wrong)}; it has {', '.join(options) or 'none'}")
    return _plain(found)


def _plain(name: str) -> str:
    """diffusers' name of a pipeline that optimum has renamed."""
    return name.removeprefix("ORT").removeprefix("OV")


def prepare(pipe: Any, task: Task, clock: Clock) -> None:
    """The scheduler that is asked for, no progress bar, and the clock around each part."""
    import diffusers

    pipe.scheduler = getattr(diffusers, task.scheduler).from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    timed(pipe.scheduler, "step", "scheduler", clock, task)
    timed(pipe.unet, "forward", "unet", clock, task)
    timed(pipe.vae, "decode", "vae_decoder", clock, task)
    for name in ("text_encoder", "text_encoder_2"):
        if getattr(pipe, name, None) is not None:
            timed(getattr(pipe, name), "forward", "text_encoder", clock, task)


def timed(owner: Any, method: str, role: str, clock: Clock, task: Task) -> None:
    """Have the clock count a method, until its device is done too. Its signature stays: pipelines ask `scheduler.step` and
    `unet.forward` for theirs."""
    function = getattr(owner, method)

    def done(*args: Any, **kwargs: Any) -> Any:
        found = function(*args, **kwargs)
        synchronize(task)
        return found

    counted = clock.wrap(role, done)

    @functools.wraps(function)
    def begun(*args: Any, **kwargs: Any) -> Any:
        synchronize(task)
        return counted(*args, **kwargs)

    setattr(owner, method, begun)


def synchronize(task: Task) -> None:
    """Wait until a device other than the processor has done what it was given: calls to it return before."""
    kind = str(task.options.get("device", "cpu")).partition(":")[0]
    if kind != "cpu":
        import torch

        getattr(torch, kind).synchronize()
