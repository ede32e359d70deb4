"""InstructPix2Pix: a picture is edited as a sentence says.

    eps = eps(0, 0) + s_I (eps(c_I, 0) - eps(0, 0)) + s_T (eps(c_I, c_T) - eps(c_I, 0)),

c_I the picture's latents as further channels, c_T the sentence; s_T is `guidance_scale`, s_I `image_guidance_scale`.
Brooks, Holynski & Efros 2023, "InstructPix2Pix: Learning to Follow Image Editing Instructions", equation 3.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..schedulers import Scheduler
from .base import Parts
from .call import IMAGE_TO_IMAGE, Call
from .common import Array, Generators, State, check_number, rescaled
from .denoiser import Denoiser, Plan, Row
from .latent_diffusion import Defaults
from .stable_diffusion import StableDiffusion
from .start import COLOURS, Span, Start, Starting, from_noise, given_latents, require_readable, tiled
from .vae import VAE


@dataclass(kw_only=True)
class EditCall(Call):
    """What `steps` takes: `image_guidance_scale`, how much of the picture to keep, too."""

    image_guidance_scale: float | None = None


class EditDenoiser(Denoiser):
    """Three answers a step: for picture and sentence, for the picture alone, for neither."""

    def guided(self, state: State, plan: Plan, step: int) -> bool:
        """diffusers' rule: both scales must ask for guidance."""
        return super().guided(state, plan, step) and state.image_guidance_scale >= 1

    def rows(self, state: State, plan: Plan, step: int) -> list[Row]:
        """In diffusers' order, the guided one first."""
        rows = super().rows(state, plan, step)
        if len(rows) == 1:
            return rows
        of_picture, both = rows
        nothing = None if plan.channels is None else np.zeros_like(plan.channels)
        return [both, of_picture, of_picture._replace(channels=nothing)]

    def guide(self, answers: list[Array], state: State) -> Array:
        """Both guidances."""
        both, of_picture, of_nothing = answers
        text, image = np.float32(state.guidance_scale), np.float32(state.image_guidance_scale)
        guided = of_nothing + text * (both - of_picture) + image * (of_picture - of_nothing)
        return rescaled(guided, both, state.guidance_rescale)


class InstructPix2Pix(StableDiffusion):
    """diffusers' `StableDiffusionInstructPix2PixPipeline`."""

    call_type = EditCall
    denoiser_type = EditDenoiser
    defaults: ClassVar[Defaults] = {
        IMAGE_TO_IMAGE: {"num_inference_steps": 100, "guidance_scale": 7.5, "image_guidance_scale": 1.5},
    }

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        self.further_channels = self.vae.channels

    def _check(self, call: Call) -> None:
        assert isinstance(call, EditCall)
        check_number("image_guidance_scale", call.image_guidance_scale)

    def _prepare(self, call: Call, state: State) -> None:
        assert isinstance(call, EditCall)
        state.image_guidance_scale = float(call.image_guidance_scale or 0)

    def _start(
        self, call: Call, scheduler: Scheduler, batch: int, size: tuple[int, int], generators: Generators, span: Span
    ) -> Starting:
        """Noise, with the picture's latents behind it, not scaled."""
        self._require_channels(call)
        noise = given_latents(call.latents, self._shape(batch, size))
        return from_edited(self._pixels(call, size), self.vae, noise, scheduler, batch, span, generators)


def from_edited(
    pixels: Array, vae: VAE, noise: Array | None, scheduler: Scheduler, batch: int, span: Span, generators: Generators,
    scale: float = 1.0,
) -> Starting:  # fmt: skip
    """Noise, with the picture's latents behind it: the posterior's mean, times `scale`. Raises InputError."""
    require_readable(pixels, vae, batch)

    def start() -> Start:
        latents = pixels if pixels.shape[1] != COLOURS else vae.unscaled(vae.encode(pixels, None))
        shape = (batch, *latents.shape[1:])
        begun = from_noise(shape, noise, generators, scheduler.init_noise_sigma, span.end)
        return dataclasses.replace(begun, channels=tiled(latents * np.float32(scale), batch, "image"))

    return start


PIPELINE = InstructPix2Pix
