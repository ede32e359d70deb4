"""DiT: pictures of a class. Peebles & Xie 2022, "Scalable Diffusion Models with Transformers"."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import InputError
from .base import Parts
from .call import Run
from .classes import class_names, class_numbers
from .common import Array, State, check_number, make_generators
from .denoiser import Acceleration
from .finishing import Finishing
from .sampling import sample, scheduled
from .start import from_noise
from .transformer import Transformer
from .vae import DECODER

LABELS = "class_labels"


@dataclass(kw_only=True)
class ClassCall(Run):
    """What `steps` takes."""

    class_labels: Any = None
    guidance_scale: float = 4.0
    guidance_start: float = 0.0
    guidance_end: float = 1.0


class DiT(Finishing):
    """diffusers' `DiTPipeline`.

    That neither scales the first noise nor keeps the sample unscaled, which does for DDIM and DPM-Solver; here a scheduler of
    sigmas, such as Euler's, gets what it wants too.
    """

    call_type = ClassCall
    roles = ("transformer", DECODER)

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        self.denoiser = parts.engines["transformer"]
        self._config = parts.configs["transformer"]
        self._denoising = Transformer(parts.engines, None)
        self.labels = class_names(parts.config.get("id2label") or {})

    @property
    def default_size(self) -> tuple[int, int]:
        """(height, width) in pixels: the one size that the model makes."""
        side: int = self._config["sample_size"] * self.vae.factor
        return side, side

    def get_label_ids(self, label: str | Sequence[str]) -> list[int]:
        """The numbers of classes by their names, as `labels` has them. Raises InputError naming those that are near."""
        return class_numbers(label, self._classes, self.labels)

    def steps(self, prompt: str | Sequence[str] | None = None, **arguments: Any) -> Iterator[State]:
        """The loop: yields its `State` after every step. A picture for each of `class_labels`, numbers or names.

        Guidance holds from the share `guidance_start` of the steps to the share `guidance_end`. Raises InputError.
        """
        if prompt is not None:
            raise InputError(
                f"{self.class_name} makes pictures of classes: give class_labels=, not the prompt {prompt!r}"
            )
        call = ClassCall.of(self.class_name, None, arguments)
        call.fill({"num_inference_steps": 50})
        return self.guarded(lambda: self._begin(call))

    @property
    def _classes(self) -> int:
        count: int = self._config["num_embeds_ada_norm"]
        return count

    def _begin(self, call: ClassCall) -> Iterator[State]:
        if call.class_labels is None:
            raise InputError(f"{self.class_name} needs class_labels: numbers from 0 to {self._classes - 1}, or names")
        numbers = np.array(class_numbers(call.class_labels, self._classes, self.labels))
        scale = check_number("guidance_scale", call.guidance_scale)
        scheduler = scheduled(self._scheduler, call)
        generators = make_generators(call.seed, call.generator, len(numbers))
        side = self._config["sample_size"]
        shape = (len(numbers), self._config["in_channels"], side, side)
        plan = self._denoising.plan(len(scheduler.timesteps), Acceleration(call.guidance_start, call.guidance_end))
        start = from_noise(shape, call.latents, generators, scheduler.init_noise_sigma)
        no_text = np.zeros((len(numbers), 0, 0), np.float32)
        state = State(
            -1, plan.steps, 0.0, start.latents, start.latents, scale, 0.0, no_text, no_text,
            {LABELS: numbers}, {LABELS: np.full_like(numbers, self._classes)},  # the class behind the last stands for none
            size=self.default_size,
        )  # fmt: skip

        def predict(step: int, scaled: Array, timestep: float) -> Array:
            return self._denoising.predict(state, plan, step, scaled, timestep)

        return sample(state, scheduler, start, generators, call.eta, predict)


PIPELINE = DiT
