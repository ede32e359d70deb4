"""Models of pixels without a prompt: DDPM (Ho et al. 2020), DDIM (Song et al. 2021), consistency models (Song et al. 2023)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ..engines import Arrays, run_in_batches
from ..errors import InputError
from ..images import to_pil, to_unit
from ..schedulers import from_config
from .base import Parts, Pipeline
from .call import Run
from .classes import class_numbers
from .common import Array, Output, State, check_count, make_generators, timestep_input
from .sampling import sample, scheduled
from .start import from_noise

LABELS = "class_labels"


@dataclass(kw_only=True)
class PixelCall(Run):
    """What `steps` takes."""

    batch_size: int = 1
    class_labels: Any = None


class Unconditional(Pipeline):
    """diffusers' `DDPMPipeline`, `DDIMPipeline` and `ConsistencyModelPipeline` in one.

    Where the model was trained with classes, `class_labels` are wanted, one for all pictures or one for each; diffusers draws
    those that are not given from a source of chance that no seed sets.
    """

    call_type = PixelCall
    roles = ("unet",)
    output_types = ("pil", "np")
    defaults: ClassVar[dict[str, int]] = {"DDPMPipeline": 1000, "DDIMPipeline": 50, "ConsistencyModelPipeline": 1}

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        self.unet = parts.engines["unet"]
        self._config = parts.configs["unet"]
        if self.class_name == "DDIMPipeline" and parts.scheduler.config["_class_name"] != "DDIMScheduler":
            self.scheduler = from_config(
                {**parts.scheduler.config, "_class_name": "DDIMScheduler"}
            )  # as diffusers' does

    @property
    def default_size(self) -> tuple[int, int]:
        """(height, width) in pixels: the one size that the model makes."""
        side = self._config["sample_size"]
        height, width = (side, side) if isinstance(side, int) else side
        return height, width

    def steps(self, prompt: str | Sequence[str] | None = None, **arguments: Any) -> Iterator[State]:
        """The loop: yields its `State` after every step, with pixels (batch, channels, height, width) about -1..1 as latents.

        `batch_size` pictures at once; `latents` replace the first noise. Raises InputError.
        """
        if prompt is not None:
            raise InputError(
                f"{self.class_name} makes pictures from noise alone: it takes no prompt, and {prompt!r} was given"
            )
        call = PixelCall.of(self.class_name, None, arguments)
        call.fill({"num_inference_steps": self.defaults[self.class_name]})
        return self.guarded(lambda: self._begin(call))

    def decode(self, latents: Array) -> Array:
        """Pictures (batch, height, width, channels) in 0..1 of pixels about -1..1."""
        return to_unit(latents)

    def finish(self, state: State, output_type: str) -> Output:
        """The last pixels as pictures."""
        pictures = self.decode(state.latents)
        return Output(to_pil(pictures) if output_type == "pil" else pictures)

    def _begin(self, call: PixelCall) -> Iterator[State]:
        batch = check_count("batch_size", call.batch_size)
        conditions = self._conditions(call, batch)
        scheduler = scheduled(self._scheduler, call)
        generators = make_generators(call.seed, call.generator, batch)
        shape = (batch, self._config["in_channels"], *self.default_size)
        start = from_noise(shape, call.latents, generators, scheduler.init_noise_sigma)
        steps, no_text = len(scheduler.timesteps), np.zeros((batch, 0, 0), np.float32)
        state = State(
            -1, steps, 0.0, start.latents, start.latents, 1.0, 0.0, no_text, None, conditions, size=self.default_size
        )

        def predict(_: int, pixels: Array, timestep: float) -> Array:
            given = {"sample": pixels, "timestep": timestep_input(self.unet, timestep, batch), **state.conditions}
            return run_in_batches(self.unet, given)["out_sample"].astype(np.float32)

        return sample(state, scheduler, start, generators, call.eta, predict)

    def _conditions(self, call: PixelCall, batch: int) -> Arrays:
        """The classes, of a model that has some."""
        count = self._config.get("num_class_embeds")
        if count is None:
            if call.class_labels is not None:
                raise InputError(
                    f"class_labels={call.class_labels!r}: this model was trained without classes; leave them out"
                )
            return {}
        if call.class_labels is None:
            raise InputError(f"this model was trained with classes: class_labels wants numbers from 0 to {count - 1}")
        numbers = class_numbers(call.class_labels, count, {})
        if len(numbers) not in (1, batch):
            raise InputError(f"{len(numbers)} class_labels for {batch} pictures; give one, or one for each")
        dtype = next(spec.dtype for spec in self.unet.signature.inputs if spec.name == LABELS)
        return {LABELS: np.resize(np.array(numbers, dtype=dtype), batch)}


PIPELINE = Unconditional
