"""Variations of a picture: its CLIP embedding stands where a text's embeddings would, and zeros where there is no guidance.

Stable Diffusion fine-tuned by Lambda Labs for it; the idea is unCLIP's (Ramesh et al. 2022, 3.1).
"""

from __future__ import annotations

from functools import partial
from typing import ClassVar

import numpy as np

from ..engines import run_in_batches
from ..errors import InputError
from ..image_processor import ClipImageProcessor
from ..images import to_pictures
from ..schedulers import Scheduler
from .base import Parts
from .call import IMAGE_TO_IMAGE, Call
from .common import Condition, Conditions, Generators
from .latent_diffusion import Defaults, LatentDiffusion
from .several_encoders import refuse_readings
from .start import Span, Starting, from_noise, given_latents


class ImageVariation(LatentDiffusion):
    """diffusers' `StableDiffusionImageVariationPipeline`: no text; a picture of the call's size for each of `image`."""

    roles = ("image_encoder", "unet", "vae_decoder")
    defaults: ClassVar[Defaults] = {IMAGE_TO_IMAGE: {"num_inference_steps": 50, "guidance_scale": 7.5}}

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        self.image_encoder = parts.engines["image_encoder"]
        self._processor = ClipImageProcessor(parts.processors.get("feature_extractor", {}))

    def condition(
        self, call: Call, texts: list[str] | None, negatives: list[str], size: tuple[int, int]  # noqa: ARG002  # of all families
    ) -> Conditions:  # fmt: skip
        """The pictures' embeddings, (pictures, 1, width)."""
        pixels = self._processor(to_pictures(call.image))

        def positive() -> Condition:
            embeds = run_in_batches(self.image_encoder, {"pixel_values": pixels}, most=1)["image_embeds"]
            return Condition(embeds[:, None].astype(np.float32), {})

        return Conditions(positive, lambda of: Condition(np.zeros_like(of.embeds), {}))

    def _texts(self, call: Call) -> tuple[list[str] | None, list[str]]:
        """No text; what would be the prompts' number is the pictures'."""
        refuse_readings(call)
        names = ("prompt", "negative_prompt", "prompt_embeds", "negative_prompt_embeds")
        given = [name for name in names if getattr(call, name) is not None]
        if given:
            raise InputError(
                f"{self.class_name} makes variations of image and takes no {', '.join(given)}: leave it out"
            )
        return None, [""] * len(to_pictures(call.image))

    def _size(self, call: Call) -> tuple[int, int]:
        return self._side(call, 0), self._side(call, 1)

    def _start(
        self, call: Call, scheduler: Scheduler, batch: int, size: tuple[int, int], generators: Generators, span: Span  # noqa: ARG002  # of all families
    ) -> Starting:  # fmt: skip
        self._require_channels(call)
        shape = self._shape(batch, size)
        return partial(from_noise, shape, given_latents(call.latents, shape), generators, scheduler.init_noise_sigma)


PIPELINE = ImageVariation
