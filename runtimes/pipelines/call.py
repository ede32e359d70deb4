"""A call's arguments: diffusers' names, one list for all latent families, and what each task takes where nothing is said."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from ..errors import unknown
from ..schedulers import Scheduler
from .common import Array, Generators, Seed, check_flag
from .deep_cache import POWER, Schedule

TEXT_TO_IMAGE, IMAGE_TO_IMAGE, INPAINTING = "text-to-image", "image-to-image", "inpainting"


@dataclass(kw_only=True)
class Run:
    """What every loop takes. None means the task's own default."""

    num_inference_steps: int | None = None
    timesteps: Sequence[float] | None = None
    sigmas: Sequence[float] | None = None
    eta: float = 0.0
    seed: Seed = None
    generator: Generators | None = None
    latents: Array | None = None

    @classmethod
    def of(cls, family: str, prompt: Any, arguments: Mapping[str, Any]) -> Self:
        """The call with these arguments. Raises InputError for a name that the family does not have, and for a switch that is
        neither on nor off."""
        fields = dataclasses.fields(cls)
        known = [field.name for field in fields]
        if prompt is not None:
            arguments = {"prompt": prompt, **arguments}
        for name in arguments:
            if name not in known:
                raise unknown(f"argument of {family}", name, known)
        for field in fields:
            kind, value = str(field.type), arguments.get(field.name, field.default)
            if kind == "bool" or (kind == "bool | None" and value is not None):
                check_flag(field.name, value)
        return cls(**arguments)

    def fill(self, defaults: Mapping[str, Any]) -> None:
        """Put a task's defaults where nothing was said; a step count only where no schedule was given."""
        for name, value in defaults.items():
            if getattr(self, name) is None and not (self.custom and name == "num_inference_steps"):
                setattr(self, name, value)

    @property
    def custom(self) -> bool:
        """Whether it brings a schedule of its own."""
        return self.timesteps is not None or self.sigmas is not None

    def count(self, scheduler: Scheduler) -> int:
        """Steps of the run, of which a strength takes a share; a scheduler of second order asks the model twice in each."""
        return self.num_inference_steps or len(scheduler.timesteps)


@dataclass(kw_only=True)
class Call(Run):
    """What `steps` of a model with prompts takes."""

    prompt: Any = None
    negative_prompt: Any = None
    image: Any = None
    mask_image: Any = None
    padding_mask_crop: int | None = None
    strength: float | None = None
    control_image: Any = None
    controlnet_conditioning_scale: float | Sequence[float] | None = None
    control_guidance_start: float | Sequence[float] | None = None
    control_guidance_end: float | Sequence[float] | None = None
    guess_mode: bool = False
    adapter_conditioning_scale: float | Sequence[float] | None = None
    adapter_conditioning_factor: float | None = None
    ip_adapter_image: Any = None
    ip_adapter_image_embeds: Any = None
    ip_adapter_scale: Any = None
    height: int | None = None
    width: int | None = None
    guidance_scale: float | None = None
    guidance_rescale: float = 0.0
    num_images_per_prompt: int = 1
    prompt_embeds: Array | None = None
    negative_prompt_embeds: Array | None = None
    clip_skip: int | None = None
    prompt_weighting: bool = False
    long_prompts: bool = False
    guidance_start: float = 0.0
    guidance_end: float = 1.0
    cache_interval: int = 1
    cache_schedule: Schedule = "uniform"
    cache_center: int | None = None
    cache_power: float = POWER

    @property
    def task(self) -> str:
        """What is asked for, by what was given."""
        if self.mask_image is not None:
            return INPAINTING
        return TEXT_TO_IMAGE if self.image is None else IMAGE_TO_IMAGE
