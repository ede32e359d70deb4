"""Kandinsky 2.2's prior: CLIP's image embeddings of prompts, by diffusion. Ramesh et al. 2022 (arXiv 2204.06125), section 2.2."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..engines import Arrays, run_in_batches
from .base import Parts, Pipeline
from .call import Run
from .common import (
    Array,
    Output,
    State,
    as_list,
    as_negative,
    check_count,
    check_number,
    guide,
    make_generators,
    timestep_input,
)
from .sampling import sample, scheduled
from .start import from_noise

ENCODER, STATISTICS = "image_encoder", "embedding_statistics"


@dataclass
class Embeddings(Output):
    """What a prior returns: embeddings (pictures, width), as `images` and as `image_embeds`, and those of what is unwanted."""

    negative_image_embeds: Any = None

    @property
    def image_embeds(self) -> Any:
        """CLIP's image embeddings."""
        return self.images


@dataclass(kw_only=True)
class PriorCall(Run):
    """What `steps` takes."""

    prompt: Any = None
    negative_prompt: Any = None
    guidance_scale: float = 4.0
    num_images_per_prompt: int = 1


@dataclass
class PriorState(State):
    """A step's state; whether the second half of its rows are of negative prompts."""

    unwanted: bool = False


class KandinskyPrior(Pipeline):
    """diffusers' `KandinskyV22PriorPipeline`: embeddings of prompts, and those of the negative ones, which are diffused in the
    same batch, or of a black picture where there are none. What it returns are arrays, for `image_embeds` of the decoder."""

    call_type = PriorCall
    roles = ("text_encoder", ENCODER, "prior")
    output_types = ("np",)
    makes = "embeddings"

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        self.prior, self.text_encoder, self.image_encoder = (
            parts.engines[r] for r in ("prior", "text_encoder", ENCODER)
        )
        self.tokenizer = parts.tokenizers["tokenizer"]
        self._image_size: int = parts.configs[ENCODER]["image_size"]
        self._width: int = parts.configs["prior"]["embedding_dim"]
        with np.load(parts.extras["prior"][STATISTICS]) as stored:
            self._mean, self._deviation = stored["mean"], stored["deviation"]

    def __call__(self, prompt: Any = None, *, output_type: str = "np", **arguments: Any) -> Embeddings:
        """Embeddings for a prompt or several. Raises InputError."""
        made = super().__call__(prompt, output_type=output_type, **arguments)
        assert isinstance(made, Embeddings)
        return made

    def steps(self, prompt: str | Sequence[str] | None = None, **arguments: Any) -> Iterator[State]:
        """The loop: yields its `State` after every step; its latents are embeddings (rows, width) of unit variance, the rows
        of negative prompts behind the others. Raises InputError."""
        call = PriorCall.of(self.class_name, prompt, arguments)
        call.fill({"num_inference_steps": 25})
        return self.guarded(lambda: self._begin(call))

    def finish(self, state: State, output_type: str) -> Output:  # noqa: ARG002  # there is one
        """The last embeddings, as CLIP has them."""
        embeds = state.latents * self._deviation + self._mean
        if isinstance(state, PriorState) and state.unwanted:
            wanted, negative = np.split(embeds, 2)
            return Embeddings(wanted, negative_image_embeds=negative)
        black = np.zeros((1, 3, self._image_size, self._image_size), np.float32)
        name = self.image_encoder.signature.inputs[0].name
        zero = run_in_batches(self.image_encoder, {name: black})["image_embeds"].astype(np.float32)
        return Embeddings(embeds, negative_image_embeds=np.repeat(zero, len(embeds), axis=0))

    def _begin(self, call: PriorCall) -> Iterator[State]:
        texts = as_list(call.prompt)
        times = check_count("num_images_per_prompt", call.num_images_per_prompt)
        negatives = as_negative(call.negative_prompt, len(texts))
        if unwanted := call.negative_prompt is not None:
            texts, negatives = texts + negatives, 2 * negatives
        scale = check_number("guidance_scale", call.guidance_scale)
        scheduler = scheduled(self._scheduler, call)
        rows = len(texts) * times
        generators = make_generators(call.seed, call.generator, rows)
        start = from_noise((rows, self._width), call.latents, generators, scheduler.init_noise_sigma)
        no_text, count = np.zeros((rows, 0, 0), np.float32), len(scheduler.timesteps)
        state = PriorState(
            -1, count, 0.0, start.latents, start.latents, scale, 0.0, no_text, None, self._read(texts, times),
            self._read(negatives, times), unwanted=unwanted,
        )  # fmt: skip

        def predict(_: int, scaled: Array, timestep: float) -> Array:
            return self._predict(state, scaled, timestep)

        return sample(state, scheduler, start, generators, call.eta, predict)

    def _predict(self, state: State, scaled: Array, timestep: float) -> Array:
        """The guided prediction of the embeddings."""
        guided = state.guidance_scale > 1
        halves = [state.negative_conditions, state.conditions] if guided else [state.conditions]
        given = {name: np.concatenate([half[name] for half in halves]) for name in state.conditions}
        given["hidden_states"] = np.concatenate([scaled] * len(halves))
        given["timestep"] = timestep_input(self.prior, timestep, len(halves) * len(scaled))
        answer = run_in_batches(self.prior, given)["predicted_image_embedding"].astype(np.float32)
        if not guided:
            return answer
        negative, positive = np.split(answer, 2)
        return guide(negative, positive, state.guidance_scale)

    def _read(self, texts: list[str], times: int) -> Arrays:
        """What the prior is given of texts, a row for each picture."""
        ids, mask = self.tokenizer.masked(texts, self.tokenizer.length)
        out = run_in_batches(self.text_encoder, {"input_ids": ids}, most=1)
        given = {
            "proj_embedding": out["text_embeds"].astype(np.float32),
            "encoder_hidden_states": out["last_hidden_state"].astype(np.float32), "attention_mask": mask.astype(bool),
        }  # fmt: skip
        return {name: np.repeat(value, times, axis=0) for name, value in given.items()}


PIPELINE = KandinskyPrior
