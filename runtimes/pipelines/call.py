"""A call's arguments: diffusers' names, one list for all latent families, and what each task takes where nothing is said."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from ..errors import unknown
from ..schedulers import Scheduler
from .common import Array, Generators, Seed
from .deep_cache import POWER, Schedule

TEXT_TO_IMAGE, IMAGE_TO_IMAGE, INPAINTING = "text-to-image", "image-to-image", "inpainting"


@dataclass(kw_only=True)
class Call:
    """What `steps` takes. None means the task's own default."""

    prompt: Any = None
    negative_prompt: Any = None
    image: Any = None
    mask_image: Any = None
    strength: float | None = None
    height: int | None = None
    width: int | None = None
    num_inference_steps: int | None = None
    timesteps: Sequence[float] | None = None
    sigmas: Sequence[float] | None = None
    guidance_scale: float | None = None
    guidance_rescale: float = 0.0
    num_images_per_prompt: int = 1
    eta: float = 0.0
    seed: Seed = None
    generator: Generators | None = None
    latents: Array | None = None
    prompt_embeds: Array | None = None
    negative_prompt_embeds: Array | None = None
    clip_skip: int | None = None
    guidance_start: float = 0.0
    guidance_end: float = 1.0
    cache_interval: int = 1
    cache_schedule: Schedule = "uniform"
    cache_center: int | None = None
    cache_power: float = POWER

    @classmethod
    def of(cls, family: str, prompt: Any, arguments: Mapping[str, Any]) -> Self:
        """The call with these arguments. Raises InputError for a name that the family does not have."""
        known = [field.name for field in dataclasses.fields(cls)]
        for name in arguments:
            if name not in known:
                raise unknown(f"argument of {family}", name, known)
        return cls(prompt=prompt, **arguments)

    @property
    def task(self) -> str:
        """What is asked for, by what was given."""
        if self.mask_image is not None:
            return INPAINTING
        return TEXT_TO_IMAGE if self.image is None else IMAGE_TO_IMAGE

    def fill(self, defaults: Mapping[str, Any]) -> None:
        """Put a task's defaults where nothing was said; a step count only where no schedule was given."""
        custom = self.timesteps is not None or self.sigmas is not None
        for name, value in defaults.items():
            if getattr(self, name) is None and not (custom and name == "num_inference_steps"):
                setattr(self, name, value)

    def count(self, scheduler: Scheduler) -> int:
        """Steps of the run, of which a strength takes a share; a scheduler of second order asks the model twice in each."""
        return self.num_inference_steps or len(scheduler.timesteps)
