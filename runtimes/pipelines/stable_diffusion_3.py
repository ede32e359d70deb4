"""Stable Diffusion 3 and 3.5: a flow model with two CLIP encoders and T5. Esser et al. 2024 (arXiv 2403.03206)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from .base import Parts
from .call import IMAGE_TO_IMAGE, TEXT_TO_IMAGE, Call
from .common import Array, Condition, Conditions, check_number, input_shape
from .flow import Flow, shift
from .latent_diffusion import Defaults
from .prompts import Reading, TextEncoder
from .several_encoders import own_texts, refuse_readings, require_pooled
from .t5 import T5Encoder
from .transformer import Transformer
from .vae import DECODER, ENCODER

POOLED = "pooled_projections"
Texts = tuple[list[str], list[str], list[str]]
"""For each of the three encoders."""


@dataclass(kw_only=True)
class SD3Call(Call):
    """What `steps` takes. A prompt that is not given for an encoder is the first one's; `mu` stands for the size's own."""

    prompt_2: Any = None
    prompt_3: Any = None
    negative_prompt_2: Any = None
    negative_prompt_3: Any = None
    pooled_prompt_embeds: Array | None = None
    negative_pooled_prompt_embeds: Array | None = None
    max_sequence_length: int | None = None
    mu: float | None = None


class StableDiffusion3(Flow):
    """diffusers' `StableDiffusion3Pipeline` and `StableDiffusion3Img2ImgPipeline` in one. The T5 encoder may be missing."""

    roles = ("text_encoder", "text_encoder_2", "transformer", DECODER)
    optional_roles = ("text_encoder_3", ENCODER)
    lazy_roles = (ENCODER,)
    call_type = SD3Call
    denoiser_type = Transformer
    defaults: ClassVar[Defaults] = {
        TEXT_TO_IMAGE: {"num_inference_steps": 28, "guidance_scale": 7.0},
        IMAGE_TO_IMAGE: {"num_inference_steps": 50, "guidance_scale": 7.0, "strength": 0.6},
    }

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        names = (("text_encoder", "tokenizer"), ("text_encoder_2", "tokenizer_2"))
        self._clips = [TextEncoder(parts.engines[role], parts.tokenizers[words], layer=1) for role, words in names]
        third = parts.engines.get("text_encoder_3")
        self._t5 = None if third is None else T5Encoder(third, parts.tokenizers["tokenizer_3"])

    def encode_prompt(self, texts: Texts, clip_skip: int = 0) -> tuple[Array, Array]:
        """Embeddings (prompts, tokens, width) of the CLIPs side by side, with T5's behind them, and the pooled ones."""
        found = [clip(prompts, clip_skip=clip_skip) for clip, prompts in zip(self._clips, texts[:2], strict=True)]
        pooled = [one.pooled for one in found if one.pooled is not None]
        clips = np.concatenate([one.embeds for one in found], axis=-1)
        _, tokens, width = input_shape(self.denoiser, "encoder_hidden_states")
        assert isinstance(tokens, int)
        assert isinstance(width, int)
        embeds = np.zeros((len(clips), tokens, width), np.float32)
        embeds[:, : clips.shape[1], : clips.shape[2]] = clips
        if self._t5 is not None:
            embeds[:, clips.shape[1] :] = self._t5(texts[2]).embeds
        return embeds, np.concatenate(pooled, axis=-1)

    def condition(self, call: Call, texts: list[str] | None, negatives: list[str], _: tuple[int, int]) -> Conditions:
        """Embeddings of all encoders, and the pooled ones of the CLIPs."""
        assert isinstance(call, SD3Call)
        own = _each(call, "prompt", negatives if texts is None else texts)
        others = _each(call, "negative_prompt", negatives)

        def positive() -> Condition:
            if texts is None:
                return _given(call.prompt_embeds, call.pooled_prompt_embeds)
            return _given(*self.encode_prompt(own, call.clip_skip or 0))

        def negative(_: Condition) -> Condition:
            if call.negative_prompt_embeds is not None:
                return _given(call.negative_prompt_embeds, call.negative_pooled_prompt_embeds)
            return _given(*self.encode_prompt(others))

        return Conditions(positive, negative)

    def _check(self, call: Call) -> None:
        for clip in self._clips:
            clip.check(Reading(0 if call.clip_skip is None else call.clip_skip))

    def _forget(self) -> None:
        for encoder in (*self._clips, self._t5):
            if encoder is not None:
                encoder.forget()

    def _texts(self, call: Call) -> tuple[list[str] | None, list[str]]:
        assert isinstance(call, SD3Call)
        refuse_readings(call, ("prompt_weighting", "long_prompts"))
        if self._t5 is not None:
            self._t5.check_length(call.max_sequence_length)
        texts, negatives = super()._texts(call)
        require_pooled(call, (len(negatives), input_shape(self.denoiser, POOLED)[1]))
        return texts, negatives

    def _schedule_options(self, call: Call) -> dict[str, Any]:
        assert isinstance(call, SD3Call)
        config = self._scheduler.config
        if call.mu is not None:
            return {"mu": check_number("mu", call.mu)}
        if not config.get("use_dynamic_shifting"):
            return {}
        height, width = (side // self.size_multiple for side in self._size(call))
        return {"mu": shift(config, height * width)}


def _each(call: SD3Call, name: str, first: list[str]) -> Texts:
    return first, own_texts(call, f"{name}_2", first), own_texts(call, f"{name}_3", first)


def _given(embeds: Any, pooled: Any) -> Condition:
    return Condition(np.asarray(embeds, np.float32), {POOLED: np.asarray(pooled, np.float32)})


PIPELINE = StableDiffusion3
