"""Text-conditioned latent diffusion with a UNet (Rombach et al. 2022): what Stable Diffusion's families share.

A family says how prompts become conditions, and what its tasks take where nothing is said.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from ..errors import InputError
from ..images import size_of, to_mask, to_pil, to_pixels
from ..schedulers import Scheduler
from .base import Parts, Pipeline
from .call import IMAGE_TO_IMAGE, INPAINTING, Call
from .common import (
    Array,
    Condition,
    Generators,
    Output,
    State,
    as_list,
    as_negative,
    check_count,
    check_number,
    check_size,
    fixed_size,
    input_shape,
    make_generators,
)
from .denoiser import SHALLOW, Acceleration, Denoiser, Plan
from .inpainting import from_masked
from .start import Start, begin_at, from_noise, from_picture
from .vae import DECODER, ENCODER, VAE

Defaults = Mapping[str, Mapping[str, Any]]
"""By task."""


class LatentDiffusion(Pipeline):
    """The call, the start and the loop. A family sets `defaults` and `call_type`, and answers `condition`."""

    optional_roles = (SHALLOW, ENCODER)
    lazy_roles = (ENCODER,)
    call_type: ClassVar[type[Call]] = Call
    defaults: ClassVar[Defaults]
    denoiser_type: ClassVar[type[Denoiser]] = Denoiser

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        self.denoiser, self.vae_decoder = parts.engines["unet"], parts.engines[DECODER]
        self._unet_config, self._vae_config = parts.configs["unet"], parts.configs[DECODER]
        self._denoising = self.denoiser_type(parts.engines, self._unet_config.get("time_cond_proj_dim"))
        self.vae = VAE(parts.engines, self._vae_config)
        self.vae_scale_factor = self.vae.factor
        self.size_multiple = self.vae_scale_factor

    @property
    def default_size(self) -> tuple[int, int]:
        """(height, width) in pixels when a call names none: what the checkpoint was trained at."""
        side = self._unet_config["sample_size"]
        height, width = (side, side) if isinstance(side, int) else side
        return height * self.vae_scale_factor, width * self.vae_scale_factor

    def steps(self, prompt: str | Sequence[str] | None = None, **arguments: Any) -> Iterator[State]:
        """The loop: yields its `State` after every step, so that progress, previews, changes half-way and stopping belong
        to the caller. It is one object, moved on by the next step. `decode(state.latents)` makes pictures.

        Arguments are diffusers' (`Call` lists them). `image` and `strength` make it image-to-image, `mask_image` beside them
        inpainting. `seed` stands for `torch.Generator().manual_seed(seed)`, a list of seeds for a list of them. `latents`
        (batch, channels, height / factor, width / factor) replace the first noise.

        Guidance holds from the share `guidance_start` of the steps to the share `guidance_end`; outside of it the batch
        halves. With a bundle exported with DeepCache the whole UNet runs every `cache_interval` steps only; as
        `cache_schedule`, "non-uniform" runs it most often around step `cache_center` (see pipelines.deep_cache for
        `cache_power`), and a list names its steps. Raises InputError.
        """
        call = self.call_type.of(self.class_name, prompt, arguments)
        call.fill(self.defaults[call.task])
        return self._begin(call)

    def decode(self, latents: Array) -> Array:
        """Pictures of latents: (batch, height, width, 3) in 0..1. One at a time, which bounds the decoder's memory."""
        return self.vae.decode(latents)

    def finish(self, state: State, output_type: str) -> Output:
        """The last latents, or their pictures."""
        if output_type == "latent":
            return Output(state.latents)
        pictures = self.decode(state.latents)
        return Output(to_pil(pictures) if output_type == "pil" else pictures)

    # what a family fills in ----------------------------------------------------------------------------------------

    def condition(
        self, call: Call, texts: list[str] | None, negatives: list[str], size: tuple[int, int]
    ) -> tuple[Condition, Callable[[], Condition]]:
        """What the denoiser is given for each prompt, and, when it is called for, for each negative one.

        `texts` is None where the call brings embeddings; `size` is (height, width) in pixels.
        """
        raise NotImplementedError

    def _plan(self, call: Call, steps: int, start: Start) -> Plan:
        """The plan of a call over so many steps."""
        how = Acceleration(
            call.guidance_start, call.guidance_end, call.cache_interval, call.cache_schedule, call.cache_center, call.cache_power
        )  # fmt: skip
        return dataclasses.replace(self._denoising.plan(steps, how), channels=start.channels)

    # ---------------------------------------------------------------------------------------------------------------

    def _begin(self, call: Call) -> Iterator[State]:
        per_prompt = check_count("num_images_per_prompt", call.num_images_per_prompt)
        size = self._size(call)
        scheduler = self._scheduled(call)
        scale = check_number("guidance_scale", call.guidance_scale)
        rescale = check_number("guidance_rescale", call.guidance_rescale)
        texts, negatives = self._texts(call)
        batch = per_prompt * len(negatives)
        generators = make_generators(call.seed, call.generator, batch)
        start = self._start(call, scheduler, batch, size, generators)
        timesteps = scheduler.timesteps[start.begin :]
        plan = self._plan(call, len(timesteps), start)
        positive, negative = self.condition(call, texts, negatives, size)
        state = State(
            -1, len(timesteps), 0.0, start.latents, start.latents, scale, rescale, _repeated(positive.embeds, per_prompt), None,
            {name: _repeated(value, per_prompt) for name, value in positive.others.items()},
        )  # fmt: skip

        def unguided() -> None:
            found = negative()
            state.negative_prompt_embeds = _repeated(found.embeds, per_prompt)
            state.negative_conditions = {name: _repeated(value, per_prompt) for name, value in found.others.items()}

        return self._loop(state, scheduler, start, generators, unguided, call.eta, plan)

    def _loop(
        self, state: State, scheduler: Scheduler, start: Start, generators: Generators, unguided: Callable[[], None], eta: float,
        plan: Plan,
    ) -> Iterator[State]:  # fmt: skip
        for i, t in enumerate(scheduler.timesteps[start.begin :]):
            if self._denoising.guided(state, plan, i) and state.negative_prompt_embeds is None:
                unguided()  # not before it is needed: it costs a run of the text encoder
            sample = scheduler.scale_model_input(state.latents, t)
            noise = self._denoising.predict(state, plan, i, sample, float(t))
            stepped = scheduler.step(noise, t, state.latents, generator=generators, eta=eta)
            state.step, state.timestep = i, float(t)
            state.latents, state.denoised = stepped.prev_sample, stepped.denoised
            if start.blend is not None:
                state.latents = start.blend(i, state.latents)
            yield state

    def _scheduled(self, call: Call) -> Scheduler:
        scheduler = copy.deepcopy(self._scheduler)
        custom = call.timesteps is not None or call.sigmas is not None
        count = call.num_inference_steps
        count = None if custom and count is None else check_count("num_inference_steps", count)
        scheduler.set_timesteps(count, timesteps=call.timesteps, sigmas=call.sigmas)
        return scheduler

    def _start(
        self, call: Call, scheduler: Scheduler, batch: int, size: tuple[int, int], generators: Generators
    ) -> Start:
        """The first latents, by what the call brings."""
        shape = (batch, self.vae.channels, *(side // self.vae_scale_factor for side in size))
        if call.task == INPAINTING:
            masks = to_mask(call.mask_image, size)
            return from_masked(
                call, self._pixels(call, size), masks, self.vae, scheduler, shape, generators, self._channels
            )
        if call.task == IMAGE_TO_IMAGE:
            begin = begin_at(scheduler, call.count(scheduler), call.strength)
            return from_picture(self._pixels(call, size), self.vae, scheduler, batch, begin, generators)
        return from_noise(shape, call.latents, generators, scheduler.init_noise_sigma)

    def _pixels(self, call: Call, size: tuple[int, int]) -> Array:
        if call.image is None:
            raise InputError("mask_image was given without image, the picture that it is a mask of")
        return to_pixels(call.image, size)

    @property
    def _channels(self) -> int:
        channels: int = self._unet_config["in_channels"]
        return channels

    def _texts(self, call: Call) -> tuple[list[str] | None, list[str]]:
        """Prompts (None where embeddings stand for them) and a negative prompt for each."""
        if (call.prompt is None) == (call.prompt_embeds is None):
            raise InputError("give a prompt or prompt_embeds, and not both")
        if call.negative_prompt is not None and call.negative_prompt_embeds is not None:
            raise InputError("give negative_prompt or negative_prompt_embeds, not both")
        texts = None if call.prompt is None else as_list(call.prompt)
        count = len(call.prompt_embeds) if texts is None and call.prompt_embeds is not None else len(texts or ())
        _, tokens, width = input_shape(self.denoiser, "encoder_hidden_states")
        for name in ("prompt_embeds", "negative_prompt_embeds"):
            embeds = getattr(call, name)
            if embeds is not None and np.shape(embeds) != (count, tokens, width):
                raise InputError(f"{name} has shape {np.shape(embeds)}, not {(count, tokens, width)}")
        return texts, as_negative(call.negative_prompt, count)

    def _size(self, call: Call) -> tuple[int, int]:
        """(height, width) in pixels: as asked, a static bundle's, the picture's own, or the model's."""
        default = self.default_size
        if call.task == IMAGE_TO_IMAGE:
            height, width = (side // self.size_multiple * self.size_multiple for side in size_of(call.image))
            default = (height or self.size_multiple, width or self.size_multiple)
        return self._side(call, 0, default[0]), self._side(call, 1, default[1])

    def _side(self, call: Call, axis: int, default: int) -> int:
        name, value = (("height", call.height), ("width", call.width))[axis]
        latent = fixed_size(self.denoiser, "sample", 2 + axis)
        if latent is not None:
            fixed: int = latent * self.vae_scale_factor
            if value not in (None, fixed):
                raise InputError(f"{name}={value}: this bundle was exported with the static {name} {fixed}")
            return fixed
        return check_size(name, default if value is None else value, self.size_multiple)


def _repeated(array: Array, times: int) -> Array:
    """Each prompt's row for each of its pictures."""
    return np.repeat(array, times, axis=0)
