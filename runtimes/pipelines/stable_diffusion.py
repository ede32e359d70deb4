"""Stable Diffusion 1.x and 2.x, text to image: latent diffusion (Rombach et al. 2022) with classifier-free guidance."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from ..engines import Engine, run_in_batches
from ..errors import InputError
from ..images import to_pil, to_unit
from ..noise import randn_tensor
from ..schedulers import Scheduler
from ..schedulers.discrete import DiscreteScheduler
from ..tokenizer import Tokenizer
from .common import (
    Array,
    Engines,
    Generators,
    Output,
    Seed,
    State,
    as_list,
    as_negative,
    check_changeable,
    check_count,
    check_number,
    check_size,
    fixed_size,
    input_shape,
    make_generators,
    require_engines,
)
from .deep_cache import POWER, Schedule
from .denoiser import SHALLOW, Acceleration, Denoiser, Plan

OUTPUT_TYPES = ("pil", "np", "latent")
TEXTS = 64  # whose embeddings are kept: 236 kB each for Stable Diffusion 1.x
Callback = Callable[["StableDiffusion", int, float, dict[str, Any]], dict[str, Any] | None]


class StableDiffusion(Engines):
    """diffusers' `StableDiffusionPipeline` around engines: same arguments, same seeds, same pictures, no PyTorch.

    One instance may serve several threads: a call keeps its state to itself, the scheduler's included.
    """

    roles = ("text_encoder", "unet", "vae_decoder")
    optional_roles = (SHALLOW,)

    def __init__(
        self,
        engines: Mapping[str, Engine],
        tokenizers: Mapping[str, Tokenizer],
        scheduler: Scheduler,
        configs: Mapping[str, Mapping[str, Any]],
    ) -> None:
        super().__init__(engines)
        require_engines(engines, self.roles, "StableDiffusionPipeline")
        self.text_encoder, self.denoiser, self.vae_decoder = (engines[role] for role in self.roles)
        self.tokenizer = tokenizers["tokenizer"]
        self.scheduler = scheduler
        self._unet_config, self._vae_config = configs["unet"], configs["vae_decoder"]
        self._denoising = Denoiser(engines, self._unet_config.get("time_cond_proj_dim"))
        # engines do not change, so neither does what they answer to a text; safe for threads, which may both encode it
        self._encoded = functools.lru_cache(TEXTS)(self._encode)
        self.vae_scale_factor = 2 ** (len(self._vae_config["block_out_channels"]) - 1)
        self.size_multiple = self.vae_scale_factor

    @property
    def scheduler(self) -> Scheduler:
        """The sampler; assign another, `EulerDiscreteScheduler.from_config(pipe.scheduler.config)`, to exchange it."""
        return self._scheduler

    @scheduler.setter
    def scheduler(self, scheduler: Scheduler) -> None:
        if not isinstance(scheduler, DiscreteScheduler):  # diffusers' own have the same methods, and want tensors
            kind = f"{type(scheduler).__module__}.{type(scheduler).__name__}"
            raise InputError(f"a scheduler of ingot.runtimes.schedulers is needed, not {kind}")
        self._scheduler = scheduler

    @property
    def default_size(self) -> tuple[int, int]:
        """(height, width) in pixels when a call names none: what the checkpoint was trained at."""
        side = self._unet_config["sample_size"]
        height, width = (side, side) if isinstance(side, int) else side
        return height * self.vae_scale_factor, width * self.vae_scale_factor

    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        *,
        progress: bool = True,
        output_type: str = "pil",
        callback_on_step_end: Callback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        **arguments: Any,
    ) -> Output:
        """Pictures for a prompt or several: `Output.images`.

        Takes what `steps` takes, and: `progress` shows a bar; `output_type` is "pil", "np" for an array
        (batch, height, width, 3) in 0..1, or "latent"; `callback_on_step_end(pipe, step, timestep, kwargs)` as in diffusers,
        with arrays for tensors. Raises InputError for arguments that cannot be used, before any graph runs.

        >>> import ingot                                                # doctest: +SKIP
        >>> pipe = ingot.load("shapes-bundle")                          # doctest: +SKIP
        >>> pipe("a large red ring on a blue background", seed=0).images[0].save("ring.png")  # doctest: +SKIP
        """
        if output_type not in OUTPUT_TYPES:
            raise InputError(f"unknown output_type {output_type!r}; available: {', '.join(OUTPUT_TYPES)}")
        check_changeable(callback_on_step_end_tensor_inputs)
        run = self.steps(prompt, **arguments)
        state = next(run)  # arguments are checked here, so that no bar stands over an error
        with tqdm(total=state.num_steps, disable=not progress) as bar:
            while True:
                bar.update()
                if callback_on_step_end is not None:
                    wanted = {name: getattr(state, name) for name in callback_on_step_end_tensor_inputs}
                    changed = callback_on_step_end(self, state.step, state.timestep, wanted) or {}
                    check_changeable(changed)
                    for name, value in changed.items():
                        setattr(state, name, value)
                following = next(run, None)
                if following is None:
                    break
                state = following
        return Output(state.latents if output_type == "latent" else self._pictures(state.latents, output_type))

    def steps(
        self,
        prompt: str | Sequence[str] | None = None,
        *,
        negative_prompt: str | Sequence[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
        guidance_scale: float = 7.5,
        guidance_rescale: float = 0.0,
        num_images_per_prompt: int = 1,
        eta: float = 0.0,
        seed: Seed = None,
        generator: Generators | None = None,
        latents: Array | None = None,
        prompt_embeds: Array | None = None,
        negative_prompt_embeds: Array | None = None,
        guidance_start: float = 0.0,
        guidance_end: float = 1.0,
        cache_interval: int = 1,
        cache_schedule: Schedule = "uniform",
        cache_center: int | None = None,
        cache_power: float = POWER,
    ) -> Iterator[State]:
        """The loop: yields its `State` after every step, so that progress, previews, changes half-way and stopping belong
        to the caller. It is one object, moved on by the next step. `decode(state.latents)` makes pictures.

        Arguments are diffusers'; `seed` stands for `torch.Generator().manual_seed(seed)`, a list of seeds for a list of
        them. `latents` (batch, channels, height / factor, width / factor) replace the first noise.

        Guidance holds from the share `guidance_start` of the steps to the share `guidance_end`; outside of it the batch
        halves. With a bundle exported with DeepCache the whole UNet runs every `cache_interval` steps only; as
        `cache_schedule`, "non-uniform" runs it most often around step `cache_center` (see pipelines.deep_cache for
        `cache_power`), and a list names its steps. Raises InputError.
        """
        per_prompt = check_count("num_images_per_prompt", num_images_per_prompt)
        size = (self._size("height", height), self._size("width", width))
        scheduler = copy.deepcopy(self._scheduler)
        custom = timesteps is not None or sigmas is not None
        count = None if custom else check_count("num_inference_steps", num_inference_steps)
        scheduler.set_timesteps(count, timesteps=timesteps, sigmas=sigmas)
        how = Acceleration(guidance_start, guidance_end, cache_interval, cache_schedule, cache_center, cache_power)
        plan = self._denoising.plan(len(scheduler.timesteps), how)
        scale = check_number("guidance_scale", guidance_scale)
        rescale = check_number("guidance_rescale", guidance_rescale)
        texts, negatives = self._texts(prompt, negative_prompt, prompt_embeds, negative_prompt_embeds)
        batch = per_prompt * len(negatives)
        generators = make_generators(seed, generator, batch)
        x = self._first_latents(latents, batch, size, generators, scheduler.init_noise_sigma)
        positive = np.asarray(prompt_embeds) if texts is None else self.encode_prompt(texts)

        def negative() -> Array:
            if negative_prompt_embeds is not None:
                return np.repeat(np.asarray(negative_prompt_embeds), per_prompt, axis=0)
            return np.repeat(self.encode_prompt(negatives), per_prompt, axis=0)

        state = State(
            -1, len(scheduler.timesteps), 0.0, x, x, scale, rescale, np.repeat(positive, per_prompt, axis=0), None
        )
        return self._loop(state, scheduler, generators, negative, eta, plan)

    def decode(self, latents: Array) -> Array:
        """Pictures of latents: (batch, height, width, 3) in 0..1. One at a time, which bounds the decoder's memory."""
        scaled = (latents / np.float32(self._vae_config["scaling_factor"])).astype(np.float32)
        return to_unit(run_in_batches(self.vae_decoder, {"latent_sample": scaled}, most=1)["sample"])

    def encode_prompt(self, prompts: Sequence[str]) -> Array:
        """Text embeddings, (len(prompts), tokens, width). Those of the last texts are kept: each is encoded once."""
        return np.concatenate([self._encoded(text) for text in prompts])  # a copy, which the caller may change

    def _encode(self, prompt: str) -> Array:
        encoded = run_in_batches(self.text_encoder, {"input_ids": self.tokenizer([prompt])}, most=1)
        embeds: Array = encoded["last_hidden_state"].astype(np.float32)
        embeds.setflags(write=False)
        return embeds

    def _loop(
        self, state: State, scheduler: Scheduler, generators: Generators, negative: Callable[[], Array], eta: float,
        plan: Plan,
    ) -> Iterator[State]:  # fmt: skip
        for i, t in enumerate(scheduler.timesteps):
            if self._denoising.guided(state, plan, i) and state.negative_prompt_embeds is None:
                state.negative_prompt_embeds = negative()  # not before it is needed: it costs a run of the text encoder
            sample = scheduler.scale_model_input(state.latents, t)
            noise = self._denoising.predict(state, plan, i, sample, float(t))
            stepped = scheduler.step(noise, t, state.latents, generator=generators, eta=eta)
            state.step, state.timestep = i, float(t)
            state.latents, state.denoised = stepped.prev_sample, stepped.denoised
            yield state

    def _texts(
        self, prompt: object, negative_prompt: object, prompt_embeds: Array | None, negative_embeds: Array | None
    ) -> tuple[list[str] | None, list[str]]:
        """Prompts (None where embeddings stand for them) and a negative prompt for each."""
        if (prompt is None) == (prompt_embeds is None):
            raise InputError("give a prompt or prompt_embeds, and not both")
        if negative_prompt is not None and negative_embeds is not None:
            raise InputError("give negative_prompt or negative_prompt_embeds, not both")
        texts = None if prompt is None else as_list(prompt)
        count = len(prompt_embeds) if texts is None and prompt_embeds is not None else len(texts or ())
        _, tokens, width = input_shape(self.denoiser, "encoder_hidden_states")
        for name, embeds in (("prompt_embeds", prompt_embeds), ("negative_prompt_embeds", negative_embeds)):
            if embeds is not None and np.shape(embeds) != (count, tokens, width):
                raise InputError(f"{name} has shape {np.shape(embeds)}, not {(count, tokens, width)}")
        return texts, as_negative(negative_prompt, count)

    def _first_latents(
        self, given: Array | None, batch: int, size: tuple[int, int], generators: Generators, sigma: float
    ) -> Array:
        shape = (batch, self._unet_config["in_channels"], *(side // self.vae_scale_factor for side in size))
        if given is not None and np.shape(given) != shape:
            raise InputError(f"latents has shape {np.shape(given)}, not {shape}")
        noise = randn_tensor(shape, generators) if given is None else np.asarray(given, dtype=np.float32)
        return noise * np.float32(sigma)

    def _size(self, name: str, value: int | None) -> int:
        axis = ("height", "width").index(name)
        latent = fixed_size(self.denoiser, "sample", 2 + axis)
        if latent is not None:
            fixed: int = latent * self.vae_scale_factor
            if value not in (None, fixed):
                raise InputError(f"{name}={value}: this bundle was exported with the static {name} {fixed}")
            return fixed
        return check_size(name, self.default_size[axis] if value is None else value, self.size_multiple)

    def _pictures(self, latents: Array, output_type: str) -> Any:
        pictures = self.decode(latents)
        return to_pil(pictures) if output_type == "pil" else pictures


PIPELINE = StableDiffusion
