"""Stable Diffusion's upscaler: a small picture, lightly noised, stands behind the latents as three further channels.

The denoiser is told how far it was noised, `noise_level`, as a class. Ho et al. 2021, "Cascaded Diffusion Models", 4.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from ..errors import BundleError, InputError
from ..images import size_of, to_pixels
from ..noise import randn_tensor
from ..schedulers import Scheduler, from_config
from .base import Parts
from .call import IMAGE_TO_IMAGE, Call
from .common import Conditions, Generators
from .latent_diffusion import Defaults
from .stable_diffusion import StableDiffusion
from .start import COLOURS, Span, Start, Starting, from_noise, given_latents, tiled

LOW_RES = "low_res_scheduler"


@dataclass(kw_only=True)
class UpscaleCall(Call):
    """What `steps` takes: `noise_level`, how far the small picture is noised, too. `height` and `width` are the large one's."""

    noise_level: int | None = None


class Upscale(StableDiffusion):
    """diffusers' `StableDiffusionUpscalePipeline`: a picture as many times as large as the autoencoder's latents are small."""

    call_type = UpscaleCall
    further_channels = COLOURS
    defaults: ClassVar[Defaults] = {
        IMAGE_TO_IMAGE: {"num_inference_steps": 75, "guidance_scale": 9.0, "noise_level": 20}
    }

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        if LOW_RES not in parts.schedulers:
            raise BundleError(f"{parts.class_name} needs a {LOW_RES}, which this bundle does not have: export it again")
        self.low_res_scheduler = from_config(parts.schedulers[LOW_RES])
        self.max_noise_level: int = parts.config.get("max_noise_level", 350)

    def condition(self, call: Call, texts: list[str] | None, negatives: list[str], size: tuple[int, int]) -> Conditions:
        """Text embeddings, and the noise level as a class."""
        found = super().condition(call, texts, negatives, size)
        labels = {"class_labels": np.full(len(negatives), self._noise_level(call), dtype=np.int64)}
        return Conditions(
            lambda: found.positive()._replace(others=labels), lambda of: found.negative(of)._replace(others=labels)
        )

    def _own_size(self, image: Any) -> tuple[int, int]:
        height, width = (side * self.vae_scale_factor for side in self._small(size_of(image)))
        return height, width

    def _small(self, size: tuple[int, int]) -> tuple[int, int]:
        """diffusers cuts the small picture, too, to what would make whole latents of it."""
        factor = self.vae_scale_factor
        height, width = (max(side // factor, 1) * factor for side in size)
        return height, width

    def _start(
        self, call: Call, scheduler: Scheduler, batch: int, size: tuple[int, int], generators: Generators, span: Span  # noqa: ARG002  # of all families
    ) -> Starting:  # fmt: skip
        """Noise of the small picture's size, with the noised picture behind it. The picture's noise is drawn first."""
        self._require_channels(call)
        level = self._noise_level(call)
        height, width = (side // self.vae_scale_factor for side in size)
        pixels = to_pixels(call.image, (height, width), resample=Image.Resampling.BICUBIC)
        shape = self._shape(batch, size)
        given = given_latents(call.latents, shape)
        each = tiled(pixels, batch, "image")
        if isinstance(generators, list) and len(generators) != len(pixels):
            pixels = each

        def start() -> Start:
            noised = self.low_res_scheduler.add_noise(pixels, randn_tensor(pixels.shape, generators), level)
            start = from_noise(shape, given, generators, scheduler.init_noise_sigma)
            return Start(start.latents, channels=tiled(noised, batch, "image"))

        return start

    def _noise_level(self, call: Call) -> int:
        assert isinstance(call, UpscaleCall)
        level = call.noise_level
        if isinstance(level, bool) or not isinstance(level, int | np.integer) or not 0 <= level <= self.max_noise_level:
            raise InputError(f"noise_level must be a whole number from 0 to {self.max_noise_level}, not {level!r}")
        return int(level)


PIPELINE = Upscale
