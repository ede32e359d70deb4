"""FLUX.1: a flow model of packed latents, distilled to take guidance as a number. Black Forest Labs 2024."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from ..engines import Arrays
from ..errors import InputError
from ..schedulers import Scheduler
from .base import Parts
from .call import IMAGE_TO_IMAGE, TEXT_TO_IMAGE, Call
from .common import (
    Array,
    Condition,
    Conditions,
    Generators,
    Output,
    State,
    check_count,
    check_number,
    fixed_size,
    input_shape,
)
from .flow import Flow, shift
from .latent_diffusion import Defaults
from .prompts import TextEncoder
from .several_encoders import own_texts, refuse_readings, require_pooled
from .start import Span, Start, Starting, given_latents
from .t5 import T5Encoder
from .transformer import Transformer
from .vae import DECODER, ENCODER

POOLED, GUIDANCE = "pooled_projections", "guidance"
DEFAULT_LATENTS = 128  # to a side: diffusers' for every checkpoint, whose configs do not say


@dataclass(kw_only=True)
class FluxCall(Call):
    """What `steps` takes. `guidance_scale` is the number that the model is told; `true_cfg_scale` above 1 guides away from the
    negative prompt, at twice the work."""

    prompt_2: Any = None
    negative_prompt_2: Any = None
    true_cfg_scale: float = 1.0
    pooled_prompt_embeds: Array | None = None
    negative_pooled_prompt_embeds: Array | None = None
    max_sequence_length: int | None = None


class FluxTransformer(Transformer):
    """A transformer that is told the place of each token: of a picture its row and column, of a text nothing."""

    timestep_unit = 1000.0

    def further(self, state: State) -> Arrays:
        """The places (tokens, 3), for a picture of `state.size`."""
        tokens = state.latents.shape[1]
        height, width = state.size
        columns = round((tokens * width / height) ** 0.5)
        places = np.zeros((tokens // columns, columns, 3), np.float32)
        places[..., 1] = np.arange(tokens // columns)[:, None]
        places[..., 2] = np.arange(columns)
        return {
            "img_ids": places.reshape(tokens, 3),
            "txt_ids": np.zeros((state.prompt_embeds.shape[1], 3), np.float32),
        }


class Flux(Flow):
    """diffusers' `FluxPipeline` and `FluxImg2ImgPipeline` in one. Latents are packed, (batch, tokens, 4 * channels): 2x2 of the
    VAE's in each token.

    A loop's `guidance_scale` is `true_cfg_scale`; what the model is told lies in `conditions["guidance"]`.
    """

    roles = ("text_encoder", "text_encoder_2", "transformer", DECODER)
    optional_roles = (ENCODER,)
    lazy_roles = (ENCODER,)
    call_type = FluxCall
    denoiser_type = FluxTransformer
    defaults: ClassVar[Defaults] = {
        TEXT_TO_IMAGE: {"num_inference_steps": 28, "guidance_scale": 3.5},
        IMAGE_TO_IMAGE: {"num_inference_steps": 28, "guidance_scale": 7.0, "strength": 0.6},
    }

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        self.size_multiple = 2 * self.vae_scale_factor
        self._clip = TextEncoder(parts.engines["text_encoder"], parts.tokenizers["tokenizer"])
        self._t5 = T5Encoder(parts.engines["text_encoder_2"], parts.tokenizers["tokenizer_2"])
        self._told = any(spec.name == GUIDANCE for spec in self.denoiser.signature.inputs)

    @property
    def default_size(self) -> tuple[int, int]:
        """(height, width) in pixels when a call names none."""
        return DEFAULT_LATENTS * self.vae_scale_factor, DEFAULT_LATENTS * self.vae_scale_factor

    def decode(self, latents: Array, size: tuple[int, int] | None = None) -> Array:
        """Pictures (batch, height, width, 3) in 0..1 of latents; `size` is theirs in pixels where they are packed, None for a
        square."""
        return self.vae.decode(self._unpacked(latents, size) if latents.ndim == 3 else latents)

    def preview(self, state: State | Array, size: tuple[int, int] | None = None) -> list[Image.Image]:
        """Small PIL pictures: see `LatentDiffusion.preview`. Of an array, packed latents of a square."""
        latents, own = (state.denoised, state.size) if isinstance(state, State) else (state, None)
        return super().preview(self._unpacked(latents, own), size)

    def finish(self, state: State, output_type: str) -> Output:
        """The last packed latents, or their pictures."""
        if output_type != "latent":
            state = dataclasses.replace(state, latents=self._unpacked(state.latents, state.size))
        return super().finish(state, output_type)

    def encode_prompt(self, texts: list[str], texts_2: list[str]) -> tuple[Array, Array]:
        """T5's embeddings of the second texts (prompts, tokens, width), CLIP's pooled ones of the first (prompts, width)."""
        pooled = self._clip(texts).pooled
        assert pooled is not None
        return self._t5(texts_2).embeds, pooled

    def condition(self, call: Call, texts: list[str] | None, negatives: list[str], _: tuple[int, int]) -> Conditions:
        """T5's embeddings, CLIP's pooled ones, and guidance where the model is told of it."""
        assert isinstance(call, FluxCall)
        second = own_texts(call, "negative_prompt_2", negatives)
        own = own_texts(call, "prompt_2", negatives if texts is None else texts)

        def positive() -> Condition:
            if texts is None:
                return self._given(call, call.prompt_embeds, call.pooled_prompt_embeds)
            return self._given(call, *self.encode_prompt(texts, own))

        def negative(_: Condition) -> Condition:
            if call.negative_prompt_embeds is not None:
                return self._given(call, call.negative_prompt_embeds, call.negative_pooled_prompt_embeds)
            return self._given(call, *self.encode_prompt(negatives, second))

        return Conditions(positive, negative)

    def _given(self, call: FluxCall, embeds: Any, pooled: Any) -> Condition:
        others = {POOLED: np.asarray(pooled, np.float32)}
        if self._told:
            others[GUIDANCE] = np.full(len(embeds), call.guidance_scale, np.float32)
        return Condition(np.asarray(embeds, np.float32), others)

    def _forget(self) -> None:
        self._clip.forget()
        self._t5.forget()

    def _texts(self, call: Call) -> tuple[list[str] | None, list[str]]:
        assert isinstance(call, FluxCall)
        refuse_readings(call)
        self._t5.check_length(call.max_sequence_length)
        check_number("true_cfg_scale", call.true_cfg_scale)
        texts, negatives = super()._texts(call)
        require_pooled(call, (len(negatives), input_shape(self.denoiser, POOLED)[1]))
        return texts, negatives

    def _prepare(self, call: Call, state: State) -> None:
        assert isinstance(call, FluxCall)
        unwanted = call.negative_prompt is not None or call.negative_prompt_embeds is not None
        state.guidance_scale = float(call.true_cfg_scale) if unwanted else 1.0

    def _begin(self, call: Call) -> Iterator[State]:
        if not call.custom and not self._scheduler.config.get("use_flow_sigmas"):
            count = check_count("num_inference_steps", call.num_inference_steps)
            call.sigmas = np.linspace(1.0, 1 / count, count).tolist()
            call.num_inference_steps = None
        return super()._begin(call)

    def _schedule_options(self, call: Call) -> dict[str, Any]:
        height, width = (side // self.size_multiple for side in self._size(call))
        return {"mu": shift(self._scheduler.config, height * width)}

    @property
    def _channels(self) -> int:
        return super()._channels // 4

    def _start(
        self, call: Call, scheduler: Scheduler, batch: int, size: tuple[int, int], generators: Generators, span: Span
    ) -> Starting:
        rows, columns = (side // self.size_multiple for side in size)
        given = given_latents(call.latents, (batch, rows * columns, 4 * self.vae.channels))
        if given is not None:
            return partial(Start, given, span.begin, span.end)
        begin = super()._start(call, scheduler, batch, size, generators, span)

        def start() -> Start:
            begun = begin()
            return dataclasses.replace(begun, latents=packed(begun.latents))

        return start

    def _fixed_latent(self, axis: int) -> int | None:
        return fixed_size(self.vae_decoder, "latent_sample", 2 + axis)

    def _unpacked(self, latents: Array, size: tuple[int, int] | None) -> Array:
        batch, tokens, channels = latents.shape
        rows = round(tokens**0.5) if size is None else size[0] // self.size_multiple
        if rows * (tokens // rows) != tokens:
            raise InputError(
                f"latents of {tokens} tokens are of no square picture: give its size, (height, width) in pixels"
            )
        patches = latents.reshape(batch, rows, tokens // rows, channels // 4, 2, 2).transpose(0, 3, 1, 4, 2, 5)
        return patches.reshape(batch, channels // 4, 2 * rows, 2 * (tokens // rows))


def packed(latents: Array) -> Array:
    """Tokens (batch, height / 2 * width / 2, 4 * channels) of latents (batch, channels, height, width)."""
    batch, channels, height, width = latents.shape
    patches = latents.reshape(batch, channels, height // 2, 2, width // 2, 2).transpose(0, 2, 4, 1, 3, 5)
    return patches.reshape(batch, height // 2 * (width // 2), 4 * channels)


PIPELINE = Flux
