"""PixArt-alpha and PixArt-Sigma: text to image with T5 and a diffusion transformer. Chen et al. 2023 and 2024."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..errors import InputError
from ..images import to_pil, to_unit
from .base import Parts
from .call import TEXT_TO_IMAGE, Call
from .common import Array, Condition, Conditions, Output, State, check_array, check_count
from .latent_diffusion import Defaults, LatentDiffusion
from .pixart_sizes import SIDES, cut_to, nearest
from .several_encoders import refuse_readings
from .t5 import T5Encoder
from .transformer import Transformer
from .vae import DECODER, ENCODER

ALPHA = "PixArtAlphaPipeline"
SIZE = ("height", "width")
MASK = "encoder_attention_mask"
RESOLUTION, ASPECT = "added_cond_kwargs.resolution", "added_cond_kwargs.aspect_ratio"


@dataclass(kw_only=True)
class PixArtCall(Call):
    """What `steps` takes. Without a word on `use_resolution_binning`, it is on where the model's sizes are known."""

    prompt_attention_mask: Array | None = None
    negative_prompt_attention_mask: Array | None = None
    use_resolution_binning: bool | None = None
    clean_caption: bool = False
    max_sequence_length: int | None = None


class PixArt(LatentDiffusion):
    """diffusers' `PixArtAlphaPipeline` and `PixArtSigmaPipeline`.

    With `use_resolution_binning` a picture is made at the size the model was trained at whose aspect is nearest, then resized
    and cut to the size that was asked for. Prompts are made lower case, as diffusers does with `clean_caption=False`.
    """

    roles = ("text_encoder", "transformer", DECODER)
    optional_roles = (ENCODER,)
    lazy_roles = (ENCODER,)
    call_type = PixArtCall
    denoiser_type = Transformer
    defaults: ClassVar[Defaults] = {TEXT_TO_IMAGE: {"num_inference_steps": 20, "guidance_scale": 4.5}}

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        self.text_encoder = parts.engines["text_encoder"]
        self._prompts = T5Encoder(self.text_encoder, parts.tokenizers["tokenizer"])
        self._inputs = {spec.name for spec in self.denoiser.signature.inputs}

    def finish(self, state: State, output_type: str) -> Output:
        """The last latents, or their pictures in the size that was asked for."""
        if output_type == "latent":
            return Output(state.latents)
        pictures = to_unit(cut_to(self.vae.decoded(state.latents), state.size))
        return Output(to_pil(pictures) if output_type == "pil" else pictures)

    def condition(self, call: Call, texts: list[str] | None, negatives: list[str], size: tuple[int, int]) -> Conditions:
        """T5's embeddings and mask, and the picture's size and aspect where the model wants to know them."""
        assert isinstance(call, PixArtCall)

        def positive() -> Condition:
            return self._read(texts, call.prompt_embeds, call.prompt_attention_mask, size)

        def negative(_: Condition) -> Condition:
            given = call.negative_prompt_embeds
            return self._read(
                None if given is not None else negatives, given, call.negative_prompt_attention_mask, size
            )

        return Conditions(positive, negative)

    def _read(
        self, texts: list[str] | None, embeds: Array | None, mask: Array | None, size: tuple[int, int]
    ) -> Condition:
        if texts is not None:
            embeds, mask = self._prompts([text.lower().strip() for text in texts])
        assert embeds is not None
        others: dict[str, Array] = {MASK: np.asarray(mask).astype(np.int64)}
        if RESOLUTION in self._inputs:
            rows = np.ones((len(embeds), 1), np.float32)
            others |= {RESOLUTION: rows * np.array(size, np.float32), ASPECT: rows * np.float32(size[0] / size[1])}
        return Condition(np.asarray(embeds, np.float32), others)

    def _forget(self) -> None:
        self._prompts.forget()

    def _texts(self, call: Call) -> tuple[list[str] | None, list[str]]:
        assert isinstance(call, PixArtCall)
        refuse_readings(call)
        self._prompts.check_length(call.max_sequence_length)
        if call.clean_caption:
            raise InputError(
                "clean_caption=True needs packages that clean texts of web pages: clean the prompt beforehand"
            )
        found = super()._texts(call)
        for name in ("prompt", "negative_prompt"):
            embeds, mask = getattr(call, f"{name}_embeds"), getattr(call, f"{name}_attention_mask")
            if (embeds is None) != (mask is None):
                raise InputError(f"{name}_embeds and {name}_attention_mask go together: give both or neither")
            if mask is not None and check_array(f"{name}_attention_mask", mask).shape != np.shape(embeds)[:2]:
                raise InputError(f"{name}_attention_mask has shape {np.shape(mask)}, not {np.shape(embeds)[:2]}")
        return found

    def _begin(self, call: Call) -> Iterator[State]:
        assert isinstance(call, PixArtCall)
        if not self._bins(call):
            return self._asked(super()._begin(call), self._size(call))
        asked = [getattr(call, name) or side for name, side in zip(SIZE, self.default_size, strict=True)]
        height, width = (check_count(name, side) for name, side in zip(SIZE, asked, strict=True))
        call.height, call.width = nearest(height, width, self._denoiser_config["sample_size"])
        return self._asked(super()._begin(call), (height, width))

    def _asked(self, loop: Iterator[State], size: tuple[int, int]) -> Iterator[State]:
        for state in loop:
            state.size = size
            if state.num_steps == 1 and self.class_name == ALPHA:
                state.latents = state.denoised  # as diffusers has it, for models distilled to one step (DMD)
            yield state

    def _bins(self, call: PixArtCall) -> bool:
        if call.use_resolution_binning is None:
            return self._denoiser_config["sample_size"] in SIDES and self._fixed_latent(0) is None
        return bool(call.use_resolution_binning)


PIPELINE = PixArt
