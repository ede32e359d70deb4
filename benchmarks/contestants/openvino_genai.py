"""OpenVINO GenAI's Text2ImagePipeline, without torch. The model is the folder that `optimum-cli export openvino` wrote.

Options: precision, static as of optimum-intel. It draws other noise from a seed than torch does, so it is given diffusers' own; a scheduler
that it has not is replaced by Euler's, which a note tells.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._diffusers_loop import check
from .measure import Clock, Task
from .optimum_intel import OPTIONS, notes, settings

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PACKAGES = ("openvino-genai", "openvino", "openvino-tokenizers")
SCHEDULERS = {  # LMS_DISCRETE is DDIM under another name: openvino-genai 2026.4.1
    "DDIMScheduler": "DDIM",
    "EulerDiscreteScheduler": "EULER_DISCRETE",
    "EulerAncestralDiscreteScheduler": "EULER_ANCESTRAL_DISCRETE",
    "LCMScheduler": "LCM",
    "PNDMScheduler": "PNDM",
}
DRAWING = ("EulerAncestralDiscreteScheduler", "LCMScheduler")  # noise at each step


def load_libraries() -> None:
    """All that it has."""
    import numpy  # noqa: F401
    import openvino  # noqa: F401
    import openvino_genai  # noqa: F401


def open_model(task: Task, clock: Clock) -> Text2Image:
    """The graphs compiled for the CPU, for any size."""
    pipeline = check(task, OPTIONS)
    if task.scheduler == "LCMScheduler" and pipeline != "LatentConsistencyModelPipeline":
        raise ValueError(f"openvino-genai 2026.4.1 dies of a segmentation fault when LCMScheduler runs a {pipeline}")
    import openvino
    import openvino_genai

    static = bool(task.options.get("static", False))
    if static:
        pipe = openvino_genai.Text2ImagePipeline(task.model)
        at_once = task.batch if len(set(task.prompts)) == 1 else 1
        pipe.reshape(at_once, task.height, task.width, task.guidance_scale)
        pipe.compile("CPU", **settings(task))
    else:
        pipe = openvino_genai.Text2ImagePipeline(task.model, "CPU", **settings(task))
    kind = SCHEDULERS.get(task.scheduler, "EULER_DISCRETE")
    config = Path(task.model, "scheduler", "scheduler_config.json")
    pipe.set_scheduler(openvino_genai.Scheduler.from_config(config, getattr(openvino_genai.Scheduler.Type, kind)))
    chosen = openvino.Core().get_property("CPU", "INFERENCE_PRECISION_HINT").to_string()
    told = [] if task.scheduler in SCHEDULERS else [f"EulerDiscreteScheduler: it has no {task.scheduler}"]
    told += ["noise between steps of its own"] if task.scheduler in DRAWING else []
    return Text2Image(pipe, task, clock, told + notes(task, str(task.options.get("precision", chosen))))


class Text2Image:
    """The pipeline, called as the others are: see `measure.Opened`."""

    def __init__(self, pipe: Any, task: Task, clock: Clock, notes: list[str]) -> None:
        self.notes = notes
        self.files = [
            str(part) for part in Path(task.model).iterdir() if part.name != "vae_encoder"
        ]  # that is not opened
        self.latents: NDArray[np.float32] | None = None
        self._pipe, self._task, self._clock = pipe, task, clock

    def __call__(self, prompts: list[str], seeds: list[int], on_step: Callable[[], None]) -> NDArray[np.uint8]:
        """One prompt a call is all it takes: other prompts of a batch come one after the other."""
        import numpy as np

        if len(set(prompts)) == 1:
            return self._generated(prompts[0], seeds, on_step)
        note = "different prompts of a batch one after the other: it takes one a call"
        if note not in self.notes:
            self.notes.append(note)
        made, latents = [], []
        self._clock.turns = len(prompts)
        for prompt, seed in zip(prompts, seeds, strict=True):
            made.append(self._generated(prompt, [seed], on_step))
            latents.append(self.latents)
        self.latents = np.concatenate([one for one in latents if one is not None])
        return np.concatenate(made)

    def _generated(self, prompt: str, seeds: list[int], on_step: Callable[[], None]) -> NDArray[np.uint8]:
        import numpy as np

        began, raised, steps = self._clock.now(), list[Exception](), list[float]()

        def after_step(_step: int, _steps: int, latent: Any) -> bool:
            self.latents = np.array(latent.data)
            try:
                on_step()
            except Exception as error:  # not through its C++: it is told to stop instead
                raised.append(error)
            steps.append(self._clock.now())
            return bool(raised)

        task = self._task
        made = self._pipe.generate(
            prompt, height=task.height, width=task.width, num_inference_steps=task.steps,
            guidance_scale=task.guidance_scale, num_images_per_prompt=len(seeds),
            generator=fed(task.first_latents(seeds)), callback=after_step, **task.call,
        )  # fmt: skip
        if raised:
            raise raised[0]
        self._clock.spans += spans(self._pipe.get_performance_metrics(), began, steps, self._clock.now())
        return np.array(made.data)


def spans(metrics: Any, began: float, steps: list[float], ended: float) -> list[tuple[str, float, float]]:
    """Its own figures on the clock's axis: it tells how long each part took, not when. Text encoders come first, the decoder
    last, and the denoiser at the beginning of each step.

    It calls back from another thread, so that a step is told some milliseconds late, now more, now less. Steps are laid end
    to end by its own durations, from the earliest end of the first that every call back agrees with.
    """
    raw = metrics.raw_metrics
    durations = [(step / 1e6, unet / 1e6) for step, unet in zip(raw.iteration_durations, raw.unet_inference_durations)]  # noqa: B905  # those that it told
    since_first = [sum(step for step, _ in durations[1 : number + 1]) for number in range(len(durations))]
    first_end = min(told - since for told, since in zip(steps, since_first))  # noqa: B905  # as many of both as both have
    text_ms = sum(metrics.get_text_encoder_infer_duration().values())
    found = [("text_encoder", began, began + text_ms / 1e3)]
    for (step, unet), since in zip(durations, since_first, strict=True):
        start = first_end + since - step
        found.append(("unet", start, start + unet))
    found.append(("vae_decoder", ended - metrics.get_vae_decoder_infer_duration() / 1e3, ended))
    return found


def fed(noise: NDArray[np.float32]) -> Any:
    """A generator that hands out the given first latents, and numbers of its own to a scheduler that asks for more."""
    import numpy as np
    import openvino
    import openvino_genai

    class Fed(openvino_genai.Generator):  # type: ignore[misc]  # has no types
        def __init__(self) -> None:
            super().__init__()
            self._left: NDArray[np.float32] | None = noise
            self._later = np.random.default_rng(0)

        def randn_tensor(self, shape: Any) -> Any:
            first, self._left = self._left, None
            if first is None or tuple(shape) != first.shape:
                return openvino.Tensor(self._later.standard_normal(tuple(shape), dtype=np.float32))
            return openvino.Tensor(np.ascontiguousarray(first))

    return Fed()
