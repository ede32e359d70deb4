"""Stable Diffusion XL (Podell et al. 2023): base, Turbo and refiner; text to image, image to image, inpainting."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from ..errors import InputError
from ..schedulers import Scheduler
from .base import Parts
from .call import IMAGE_TO_IMAGE, INPAINTING, TEXT_TO_IMAGE, Call
from .common import Array, Condition, Conditions, as_list, input_shape
from .latent_diffusion import Defaults, LatentDiffusion
from .prompts import PLAIN, Encoded, Reading, TextEncoder, readings
from .several_encoders import check_pooled
from .stable_diffusion_xl_conditions import XLCall, check_ids, first_step, last_step, time_ids
from .start import Span

_COMMON = {"num_inference_steps": 50, "guidance_scale": 5.0}
_ENCODERS = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}
PENULTIMATE = 1  # the layer whose hidden states both encoders give


class StableDiffusionXL(LatentDiffusion):
    """diffusers' `StableDiffusionXLPipeline`, `StableDiffusionXLImg2ImgPipeline` and `StableDiffusionXLInpaintPipeline` in
    one, for checkpoints with both text encoders and for refiners, which have the second alone.

    An ensemble: `latents = base(prompt, denoising_end=0.8, output_type="latent").images`, and then
    `refiner(prompt, image=latents, denoising_start=0.8)`.
    """

    roles = ("text_encoder_2", "unet", "vae_decoder")
    optional_roles = ("text_encoder", *LatentDiffusion.optional_roles)
    call_type = XLCall
    defaults: ClassVar[Defaults] = {
        TEXT_TO_IMAGE: _COMMON,
        IMAGE_TO_IMAGE: {**_COMMON, "strength": 0.3},
        INPAINTING: {**_COMMON, "guidance_scale": 7.5, "strength": 0.9999},
    }

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        self._encoders = [
            TextEncoder(parts.engines[role], parts.tokenizers[words], PENULTIMATE)
            for role, words in _ENCODERS.items()
            if role in parts.engines
        ]
        self._zeros: bool = parts.config.get("force_zeros_for_empty_prompt", True)
        self._ids = int(input_shape(self.denoiser, "time_ids")[1])

    def encode_prompt(
        self, prompts: Sequence[str], prompts_2: Sequence[str] | None = None, reading: Reading = PLAIN
    ) -> Encoded:
        """Embeddings (len(prompts), tokens, widths of the encoders together), and pooled ones of the last encoder,
        (len(prompts), width). `prompts_2` are the second encoder's, the same where none are given."""
        texts = [prompts, prompts if prompts_2 is None else prompts_2]
        found = [encoder(own, reading) for encoder, own in zip(self._encoders, texts, strict=False)]
        return Encoded(np.concatenate([one.embeds for one in found], axis=-1), found[-1].pooled)

    def _forget(self) -> None:
        for encoder in self._encoders:
            encoder.forget()

    def condition(self, call: Call, texts: list[str] | None, negatives: list[str], size: tuple[int, int]) -> Conditions:
        """Embeddings, pooled embeddings and time ids."""
        assert isinstance(call, XLCall)
        reading, negative_reading = self._readings(call, texts, negatives)
        ids, negative_ids = (np.repeat(row, len(negatives), axis=0) for row in time_ids(call, size, self._ids))

        def positive() -> Condition:
            return _condition(self._positive(call, texts, reading), ids)

        def negative(of: Condition) -> Condition:
            return _condition(self._negative(call, negatives, of, negative_reading), negative_ids)

        return Conditions(positive, negative)

    def _positive(self, call: XLCall, texts: list[str] | None, reading: Reading) -> Encoded:
        if texts is None:
            return Encoded(_floats(call.prompt_embeds), _floats(call.pooled_prompt_embeds))
        found = self.encode_prompt(texts, _second(call.prompt_2, texts, "prompt_2"), reading)
        return found if call.pooled_prompt_embeds is None else found._replace(pooled=_floats(call.pooled_prompt_embeds))

    def _negative(self, call: XLCall, negatives: list[str], positive: Condition, reading: Reading) -> Encoded:
        if call.negative_prompt_embeds is not None:
            return Encoded(_floats(call.negative_prompt_embeds), _floats(call.negative_pooled_prompt_embeds))
        if self._zeros and call.negative_prompt is None:
            return Encoded(np.zeros_like(positive.embeds), np.zeros_like(positive.others["text_embeds"]))
        found = self.encode_prompt(negatives, _second(call.negative_prompt_2, negatives, "negative_prompt_2"), reading)
        pooled = call.negative_pooled_prompt_embeds
        return found if pooled is None else found._replace(pooled=_floats(pooled))

    def _texts(self, call: Call) -> tuple[list[str] | None, list[str]]:
        assert isinstance(call, XLCall)
        texts, negatives = super()._texts(call)
        self._check_second(call, negatives)
        self._check_pooled(call, len(negatives))
        check_ids(call, self._ids)
        self._readings(call, texts, negatives)
        return texts, negatives

    def _readings(self, call: XLCall, texts: list[str] | None, negatives: list[str]) -> tuple[Reading, Reading]:
        """How the prompts and the negative ones are read. Raises InputError."""
        every = [*(texts or ()), *(_second(call.prompt_2, texts, "prompt_2") if texts else ())]
        unwanted = [*negatives, *_second(call.negative_prompt_2, negatives, "negative_prompt_2")]
        return readings(call, self._encoders, every, unwanted, input_shape(self.denoiser, "encoder_hidden_states")[1])

    def _check_second(self, call: XLCall, negatives: list[str]) -> None:
        """Refuse texts for the second encoder that it would not be given."""
        for name, embeds in (("prompt_2", "prompt_embeds"), ("negative_prompt_2", "negative_prompt_embeds")):
            if getattr(call, name) is None:
                continue
            if len(self._encoders) == 1:
                raise InputError(
                    f"{name} is for models with two text encoders, and this one has the second alone, as refiners have: "
                    f"give {name.removesuffix('_2')}"
                )
            if getattr(call, embeds) is not None:
                raise InputError(f"give {name} or {embeds}, not both")
            _second(getattr(call, name), negatives, name)
        if self._zeros and call.negative_prompt is None and call.negative_prompt_2 is not None:
            raise InputError(
                "negative_prompt_2 was given without negative_prompt, in whose place this model takes zeros, whatever the "
                "second is: give both"
            )

    def _check_pooled(self, call: XLCall, count: int) -> None:
        """Refuse embeddings without their pooled ones, and pooled ones of another shape."""
        wanted = count, input_shape(self.denoiser, "text_embeds")[1]
        for embeds, name in (
            ("prompt_embeds", "pooled_prompt_embeds"),
            ("negative_prompt_embeds", "negative_pooled_prompt_embeds"),
        ):
            if getattr(call, name) is None and getattr(call, embeds) is not None:
                raise InputError(f"{embeds} was given without {name}, (count, width), which this model takes beside it")
            check_pooled(name, getattr(call, name), wanted)

    def _span(self, call: Call, scheduler: Scheduler) -> Span:
        """The steps to run: those of a strength, or those between two shares of the denoising."""
        assert isinstance(call, XLCall)
        if call.denoising_start is None:
            span = super()._span(call, scheduler)
        elif call.task == TEXT_TO_IMAGE:
            raise InputError("denoising_start was given without image, the latents that another denoiser has left")
        else:
            span = Span(first_step(call, scheduler), noised=False)
            scheduler.set_begin_index(span.begin)
        return span._replace(end=last_step(call, scheduler, span.begin))


def _condition(found: Encoded, ids: Array) -> Condition:
    return Condition(found.embeds, {"text_embeds": _floats(found.pooled), "time_ids": ids})


def _second(given: object, texts: list[str], name: str) -> list[str]:
    """The second encoder's texts, one for each of the first's; the first's where none, or an empty one, is given."""
    if not given:
        return texts
    found = as_list(given, name)
    if len(found) not in (1, len(texts)):
        raise InputError(f"{len(found)} of {name} for {len(texts)} prompts; give one, or one for each")
    return found * len(texts) if len(found) == 1 else found


def _floats(array: object) -> Array:
    return np.asarray(array, dtype=np.float32)


PIPELINE = StableDiffusionXL
