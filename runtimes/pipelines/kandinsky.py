"""Kandinsky 2.2's decoder: pictures of CLIP's image embeddings. Razzhigaev et al. 2023 (arXiv 2310.03502)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..engines import Engine, run_in_batches
from ..errors import InputError
from ..images import to_pil, to_unit
from .base import Parts, Pipeline
from .call import Run
from .common import (
    Array,
    Output,
    State,
    check_array,
    check_count,
    check_number,
    check_size,
    fixed_size,
    make_generators,
)
from .denoiser import Acceleration, Denoiser
from .sampling import sample, scheduled
from .start import from_noise

DECODER, CONDITION = "movq_decoder", "added_cond_kwargs.image_embeds"
DEFAULT_SIDE = 512  # pixels: diffusers' for every checkpoint


@dataclass(kw_only=True)
class EmbedsCall(Run):
    """What `steps` takes. Embeddings are a prior's, (pictures, width)."""

    image_embeds: Array | None = None
    negative_image_embeds: Array | None = None
    height: int | None = None
    width: int | None = None
    guidance_scale: float = 4.0
    guidance_start: float = 0.0
    guidance_end: float = 1.0
    num_images_per_prompt: int = 1


class VarianceUNet(Denoiser):
    """A UNet that predicts a variance beside the noise: guidance is of the noise alone, the variance is the guided half's."""

    def guide(self, answers: list[Array], state: State) -> Array:
        """One prediction of the answers to `rows`, (batch, 2 * channels, height, width)."""
        mean = np.split(super().guide(answers, state), 2, axis=1)[0]
        return np.concatenate([mean, np.split(answers[1], 2, axis=1)[1]], axis=1)


class Kandinsky(Pipeline):
    """diffusers' `KandinskyV22Pipeline`. Sides are whole multiples of the factor's square, to which diffusers rounds up."""

    call_type = EmbedsCall
    roles = ("unet", DECODER)

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        self.denoiser, self.movq = parts.engines["unet"], parts.engines[DECODER]
        self._config = parts.configs["unet"]
        self._denoising = VarianceUNet(parts.engines, None)
        self.movq_scale_factor: int = 2 ** (len(parts.configs[DECODER]["block_out_channels"]) - 1)

    def steps(self, prompt: str | Sequence[str] | None = None, **arguments: Any) -> Iterator[State]:
        """The loop: yields its `State` after every step. `num_images_per_prompt` pictures of each of `image_embeds`.

        Guidance holds from the share `guidance_start` of the steps to the share `guidance_end`. Raises InputError.
        """
        if prompt is not None:
            raise InputError(f"{self.class_name} takes image_embeds, which its prior makes of the prompt {prompt!r}")
        call = EmbedsCall.of(self.class_name, None, arguments)
        call.fill({"num_inference_steps": 100})
        return self.guarded(lambda: self._begin(call))

    def decode(self, latents: Array) -> Array:
        """Pictures of latents: (batch, height, width, 3) in 0..1. One at a time."""
        return to_unit(_answer(self.movq, latents.astype(np.float32)))

    def finish(self, state: State, output_type: str) -> Output:
        """The last latents, or their pictures."""
        if output_type == "latent":
            return Output(state.latents)
        pictures = self.decode(state.latents)
        return Output(to_pil(pictures) if output_type == "pil" else pictures)

    def _begin(self, call: EmbedsCall) -> Iterator[State]:
        embeds, negative = self._embeds(call)
        scale = check_number("guidance_scale", call.guidance_scale)
        scheduler = scheduled(self._scheduler, call)
        size = self._side(call.height, 0), self._side(call.width, 1)
        generators = make_generators(call.seed, call.generator, len(embeds))
        shape = (len(embeds), self._config["in_channels"], *(side // self.movq_scale_factor for side in size))
        plan = self._denoising.plan(len(scheduler.timesteps), Acceleration(call.guidance_start, call.guidance_end))
        start = from_noise(shape, call.latents, generators, scheduler.init_noise_sigma)
        no_text = np.zeros((len(embeds), 0, 0), np.float32)
        state = State(
            -1, plan.steps, 0.0, start.latents, start.latents, scale, 0.0, no_text, no_text,
            {CONDITION: embeds}, {CONDITION: negative}, size=size,
        )  # fmt: skip
        learned = str(scheduler.config.get("variance_type")).startswith("learned")

        def predict(step: int, scaled: Array, timestep: float) -> Array:
            answer = self._denoising.predict(state, plan, step, scaled, timestep)
            return answer if learned else answer[:, : scaled.shape[1]]

        return sample(state, scheduler, start, generators, call.eta, predict)

    def _embeds(self, call: EmbedsCall) -> tuple[Array, Array]:
        """A row for each picture of both embeddings."""
        width = next(spec.shape[1] for spec in self.denoiser.signature.inputs if spec.name == CONDITION)
        times = check_count("num_images_per_prompt", call.num_images_per_prompt)
        given = {name: getattr(call, name) for name in ("image_embeds", "negative_image_embeds")}
        for name, value in given.items():
            shape = () if value is None else check_array(name, value).shape
            if len(shape) != 2 or shape[1] != width or not shape[0]:
                had = "nothing" if value is None else f"shape {shape}"
                raise InputError(f"{name} must be a prior's, of shape (pictures, {width}), not {had}")
        counts = [len(value) for value in given.values()]
        if counts[0] != counts[1]:
            raise InputError(f"{counts[0]} image_embeds and {counts[1]} negative_image_embeds; give as many of both")
        embeds, negative = (np.repeat(np.asarray(v, np.float32), times, axis=0) for v in given.values())
        return embeds, negative

    def _side(self, asked: int | None, axis: int) -> int:
        name, factor = ("height", "width")[axis], self.movq_scale_factor
        latent = fixed_size(self.denoiser, "sample", 2 + axis)
        if latent is not None and asked not in (None, latent * factor):
            raise InputError(f"{name}={asked}: this bundle was exported with the static {name} {latent * factor}")
        default = DEFAULT_SIDE if latent is None else latent * factor
        return check_size(name, default if asked is None else asked, factor**2)


def _answer(graph: Engine, array: Array) -> Array:
    """What a graph of one input and one output answers, a row at a time."""
    signature = graph.signature
    out = run_in_batches(graph, {signature.inputs[0].name: array}, most=1)
    return out[signature.outputs[0].name]


PIPELINE = Kandinsky
