"""Stable Diffusion 1.x and 2.x: text to image, image to image, inpainting."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from .base import Parts
from .call import IMAGE_TO_IMAGE, INPAINTING, TEXT_TO_IMAGE, Call
from .common import Array, Condition, Conditions, input_shape
from .latent_diffusion import Defaults, LatentDiffusion
from .prompts import NORM, PLAIN, Reading, TextEncoder, readings

_COMMON = {"num_inference_steps": 50, "guidance_scale": 7.5}


class StableDiffusion(LatentDiffusion):
    """diffusers' `StableDiffusionPipeline`, `StableDiffusionImg2ImgPipeline` and `StableDiffusionInpaintPipeline` in one."""

    roles = ("text_encoder", "unet", "vae_decoder")
    defaults: ClassVar[Defaults] = {
        TEXT_TO_IMAGE: _COMMON,
        IMAGE_TO_IMAGE: {**_COMMON, "strength": 0.8},
        INPAINTING: {**_COMMON, "strength": 1.0},
    }

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        self.text_encoder = parts.engines["text_encoder"]
        self.tokenizer = parts.tokenizers["tokenizer"]
        norm = parts.extras.get("text_encoder", {}).get(NORM)
        self._prompts = TextEncoder(self.text_encoder, self.tokenizer, norm=norm)

    def encode_prompt(self, prompts: Sequence[str], reading: Reading = PLAIN) -> Array:
        """Text embeddings, (len(prompts), tokens, width). Those of the last texts are kept: each is encoded once."""
        return self._prompts(prompts, reading).embeds

    def _forget(self) -> None:
        self._prompts.forget()

    def condition(self, call: Call, texts: list[str] | None, negatives: list[str], _: tuple[int, int]) -> Conditions:
        """Text embeddings alone."""
        tokens = input_shape(self.denoiser, "encoder_hidden_states")[1]
        reading, plain = readings(call, [self._prompts], texts or (), negatives, tokens)

        def positive() -> Condition:
            return Condition(
                np.asarray(call.prompt_embeds, np.float32) if texts is None else self.encode_prompt(texts, reading), {}
            )

        def negative(_: Condition) -> Condition:
            given = call.negative_prompt_embeds
            return Condition(
                self.encode_prompt(negatives, plain) if given is None else np.asarray(given, np.float32), {}
            )

        return Conditions(positive, negative)


PIPELINE = StableDiffusion
