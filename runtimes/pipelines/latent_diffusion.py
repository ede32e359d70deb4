"""Text-conditioned latent diffusion (Rombach et al. 2022), by a UNet or a transformer: what its families share.

A family says how prompts become conditions, and what its tasks take where nothing is said.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import numpy as np

from ..errors import InputError
from ..images import size_of, to_mask, to_pixels
from ..schedulers import Scheduler
from .base import Parts
from .call import IMAGE_TO_IMAGE, INPAINTING, TEXT_TO_IMAGE, Call
from .common import (
    Array,
    Conditions,
    Generators,
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
from .controls import Batch
from .crop import cut
from .denoiser import SHALLOW, Acceleration, Denoiser, Plan
from .finishing import Finishing
from .inpainting import from_masked
from .prompts import count_of
from .safety import ROLE as SAFETY_CHECKER
from .sampling import sample, scheduled
from .start import Span, Start, Starting, begin_at, from_noise, from_picture, given_latents, is_latents
from .steering import ROLES, Steering
from .vae import ENCODER

Defaults = Mapping[str, Mapping[str, Any]]
"""By task."""


class LatentDiffusion(Finishing):
    """The call, the start and the loop. A family sets `defaults` and `call_type`, and answers `condition`."""

    optional_roles = (SHALLOW, ENCODER, SAFETY_CHECKER, *ROLES)
    lazy_roles = (ENCODER, SAFETY_CHECKER, *ROLES)
    call_type: ClassVar[type[Call]] = Call
    defaults: ClassVar[Defaults]
    denoiser_type: ClassVar[type[Denoiser]] = Denoiser
    further_channels: int = 0  # that the denoiser is given behind the latents', inpainting's aside

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        role = self.denoiser_type.role
        self.denoiser, self._denoiser_config = parts.engines[role], parts.configs[role]
        self._denoising = self.denoiser_type(parts.engines, self._denoiser_config.get("time_cond_proj_dim"))
        self._steering = Steering(parts, role)
        self.size_multiple: int = self.vae_scale_factor * (self._denoiser_config.get("patch_size") or 1)

    @property
    def default_size(self) -> tuple[int, int]:
        """(height, width) in pixels when a call names none: what the checkpoint was trained at."""
        side = self._denoiser_config.get("sample_size")
        if side is None:
            raise InputError("the checkpoint does not say the size it was trained at: give height and width")
        height, width = (side, side) if isinstance(side, int) else side
        return height * self.vae_scale_factor, width * self.vae_scale_factor

    def steps(self, prompt: str | Sequence[str] | None = None, **arguments: Any) -> Iterator[State]:
        """The loop: yields its `State` after every step, so that progress, previews, changes half-way and stopping belong
        to the caller. It is one object, moved on by the next step. `decode(state.latents)` makes pictures.

        Arguments are diffusers' (`Call` lists them). `image` and `strength` make it image-to-image, `mask_image` beside them
        inpainting, of which `padding_mask_crop` paints the masked part alone, larger, with a margin of so many pixels. `seed`
        stands for `torch.Generator().manual_seed(seed)`, a list of seeds for a list of them. `latents` (batch, channels,
        height / factor, width / factor) replace the first noise.

        Guidance holds from the share `guidance_start` of the steps to the share `guidance_end`; outside of it the batch
        halves. With a bundle exported with DeepCache the whole UNet runs every `cache_interval` steps only; as
        `cache_schedule`, "non-uniform" runs it most often around step `cache_center` (see pipelines.deep_cache for
        `cache_power`), and a list names its steps.

        `prompt_weighting` reads `(word:1.3)` and `[word]` as weights (see pipelines.weighting); without it brackets are text,
        as in diffusers. `long_prompts` encodes what does not fit the text encoder in chunks, for bundles exported with it;
        without it a prompt is cut, as in diffusers.

        `control_image` steers by ControlNets or T2I-Adapters, `ip_adapter_image` by IP-Adapters, where the bundle has them, with
        diffusers' names for their scales and intervals (see pipelines.steering). Raises InputError.
        """
        call = self.call_type.of(self.class_name, prompt, arguments)
        self._steering.read(call)
        call.fill(self._defaults(call))
        return self.guarded(lambda: self._begin(call))  # no other thread changes weights meanwhile

    def set_ip_adapter_scale(self, scale: Any) -> None:
        """The scale of IP-Adapters in calls that give no `ip_adapter_scale`. Raises InputError: see `IPAdapters.scales`."""
        self._steering.set_ip_adapter_scale(scale)

    # what a family fills in ----------------------------------------------------------------------------------------

    def condition(self, call: Call, texts: list[str] | None, negatives: list[str], size: tuple[int, int]) -> Conditions:
        """What makes what the denoiser is given for each prompt, and for each negative one.

        `texts` is None where the call brings embeddings; `size` is (height, width) in pixels. Raises InputError here, before
        a graph runs.
        """
        raise NotImplementedError

    def _check(self, call: Call) -> None:
        """Raise InputError for a family's own arguments."""

    def _schedule_options(self, call: Call) -> dict[str, Any]:  # noqa: ARG002  # a family's own call has them
        """What a family's scheduler is told beside the steps."""
        return {}

    def _prepare(self, call: Call, state: State) -> None:
        """Put a family's own arguments into the first state."""

    def _plan(self, call: Call, steps: int) -> Plan:
        """The plan of a call over so many steps."""
        how = Acceleration(
            call.guidance_start, call.guidance_end, call.cache_interval, call.cache_schedule, call.cache_center, call.cache_power
        )  # fmt: skip
        return self._denoising.plan(steps, how)

    # ---------------------------------------------------------------------------------------------------------------

    def _begin(self, call: Call) -> Iterator[State]:
        """The loop of a call. All arguments are checked before the first graph runs or a number is drawn."""
        self._check(call)
        per_prompt = check_count("num_images_per_prompt", call.num_images_per_prompt)
        size = self._size(call)
        overlay = cut(call, size)
        scheduler = self._scheduled(call)
        scale = check_number("guidance_scale", call.guidance_scale)
        rescale = check_number("guidance_rescale", call.guidance_rescale)
        texts, negatives = self._texts(call)
        batch = per_prompt * len(negatives)
        generators = make_generators(call.seed, call.generator, batch)
        span = self._span(call, scheduler)
        plan = self._plan(call, len(scheduler.timesteps[span.begin : span.end]))
        steering = self._steering.of(call, Batch(size, len(negatives), per_prompt))
        starting = self._start(call, scheduler, batch, size, generators, span)
        conditions = self.condition(call, texts, negatives, size)
        # from here on graphs run
        steered, start, own = steering(), starting(), conditions.positive()
        plan = dataclasses.replace(plan, channels=start.channels, controls=steered.controls)
        positive = steered.condition(own, guided=True)
        state = State(
            -1, plan.steps, 0.0, start.latents, start.latents, scale, rescale, _repeated(positive.embeds, per_prompt), None,
            {name: _repeated(value, per_prompt) for name, value in positive.others.items()}, size=size, overlay=overlay,
        )  # fmt: skip
        self._prepare(call, state)

        def unguided() -> None:
            found = steered.condition(conditions.negative(own), guided=False)
            state.negative_prompt_embeds = _repeated(found.embeds, per_prompt)
            state.negative_conditions = {name: _repeated(value, per_prompt) for name, value in found.others.items()}

        return self._loop(state, scheduler, start, generators, unguided, call.eta, plan)

    def _loop(
        self, state: State, scheduler: Scheduler, start: Start, generators: Generators, unguided: Callable[[], None], eta: float,
        plan: Plan,
    ) -> Iterator[State]:  # fmt: skip
        def predict(step: int, scaled: Array, timestep: float) -> Array:
            if self._denoising.guided(state, plan, step) and state.negative_prompt_embeds is None:
                unguided()  # not before it is needed: it costs a run of the text encoder
            return self._denoising.predict(state, plan, step, scaled, timestep)

        return sample(state, scheduler, start, generators, eta, predict)

    def _scheduled(self, call: Call) -> Scheduler:
        return scheduled(self._scheduler, call, **self._schedule_options(call))

    def _start(
        self, call: Call, scheduler: Scheduler, batch: int, size: tuple[int, int], generators: Generators, span: Span
    ) -> Starting:
        """What makes the first latents, by what the call brings. Raises InputError here, before a graph runs."""
        shape = self._shape(batch, size)
        self._require_channels(call)
        if call.task == INPAINTING:
            masks = to_mask(call.mask_image, size)
            return from_masked(
                call, self._pixels(call, size), masks, self.vae, scheduler, shape, generators, self._channels, span
            )
        given = given_latents(call.latents, shape)
        if call.task == IMAGE_TO_IMAGE:
            pixels = self._pixels(call, size)
            if given is not None:  # noised already
                return partial(Start, given, span.begin, span.end)
            return from_picture(pixels, self.vae, scheduler, batch, span, generators)
        return partial(from_noise, shape, given, generators, scheduler.init_noise_sigma, span.end)

    def _shape(self, batch: int, size: tuple[int, int]) -> tuple[int, ...]:
        """Of the latents of so many pictures of a size."""
        return batch, self.vae.channels, *(side // self.vae_scale_factor for side in size)

    def _span(self, call: Call, scheduler: Scheduler) -> Span:
        """The steps to run: of a picture the last `strength` of them, where its task has one."""
        if call.strength is None:
            return Span()
        return Span(begin_at(scheduler, call.count(scheduler), call.strength))

    def _defaults(self, call: Call) -> Mapping[str, Any]:
        """What the call's task takes where nothing is said. Raises InputError for a task that is not the family's."""
        if call.task not in self.defaults:
            wants = {TEXT_TO_IMAGE: "give image", IMAGE_TO_IMAGE: "leave image out", INPAINTING: "leave mask_image out"}
            raise InputError(
                f"{self.class_name} does {' and '.join(self.defaults)}, not {call.task}: {wants[call.task]}"
            )
        found = self.defaults[call.task]
        if call.strength is not None and "strength" not in found:
            raise InputError(
                f"strength={call.strength}: {call.task} of {self.class_name} starts from noise, and has none"
            )
        return found

    def _require_channels(self, call: Call) -> None:
        """Raise InputError for a task that the denoiser was not made for."""
        given = self.vae.channels + self.further_channels
        if call.task != INPAINTING and self._channels != given:
            raise InputError(
                f"this model's denoiser takes {self._channels} channels, and {call.task} of {self.class_name} gives it {given}"
                + ": it wants image and mask_image" * (self._channels == 2 * self.vae.channels + 1)
            )

    def _pixels(self, call: Call, size: tuple[int, int]) -> Array:
        if call.image is None:
            raise InputError("mask_image was given without image, the picture that it is a mask of")
        if not is_latents(call.image, self.vae.channels):
            return to_pixels(call.image, size)
        had, wanted = call.image.shape[2:], tuple(side // self.vae_scale_factor for side in size)
        if had != wanted:
            raise InputError(
                f"image has latents of {had[0]}x{had[1]}, and this picture has {wanted[0]}x{wanted[1]} of them"
            )
        return np.asarray(call.image, dtype=np.float32)

    @property
    def _channels(self) -> int:
        channels: int = self._denoiser_config["in_channels"]
        return channels

    def _texts(self, call: Call) -> tuple[list[str] | None, list[str]]:
        """Prompts (None where embeddings stand for them) and a negative prompt for each."""
        if (call.prompt is None) == (call.prompt_embeds is None):
            raise InputError("give a prompt or prompt_embeds, and not both")
        if call.negative_prompt is not None and call.negative_prompt_embeds is not None:
            raise InputError("give negative_prompt or negative_prompt_embeds, not both")
        texts = None if call.prompt is None else as_list(call.prompt)
        count = count_of(call, texts, input_shape(self.denoiser, "encoder_hidden_states"))
        return texts, as_negative(call.negative_prompt, count)

    def _size(self, call: Call) -> tuple[int, int]:
        """(height, width) in pixels: as asked, a static bundle's, the picture's own, or the model's."""
        default = self._steering.default_size(call, self.size_multiple)
        if call.task == IMAGE_TO_IMAGE:
            default = self._own_size(call.image)
        return self._side(call, 0, default), self._side(call, 1, default)

    def _own_size(self, image: Any) -> tuple[int, int]:
        """(height, width) that a picture is made at where nothing else is said: its own, cut to what the model takes."""
        if is_latents(image, self.vae.channels):
            return image.shape[2] * self.vae_scale_factor, image.shape[3] * self.vae_scale_factor
        height, width = (side // self.size_multiple * self.size_multiple for side in size_of(image))
        return height or self.size_multiple, width or self.size_multiple

    def _fixed_latent(self, axis: int) -> int | None:
        """The height (0) or width (1) of a static graph's latents."""
        return fixed_size(self.denoiser, self.denoiser_type.sample, 2 + axis)

    def _side(self, call: Call, axis: int, default: tuple[int, int] | None = None) -> int:
        """As asked, a static bundle's, or of `default`, which is the model's own where there is none."""
        name, value = (("height", call.height), ("width", call.width))[axis]
        latent = self._fixed_latent(axis)
        if latent is not None:
            fixed: int = latent * self.vae_scale_factor
            if value not in (None, fixed):
                raise InputError(f"{name}={value}: this bundle was exported with the static {name} {fixed}")
            return fixed
        return check_size(name, (default or self.default_size)[axis] if value is None else value, self.size_multiple)


def _repeated(array: Array, times: int) -> Array:
    """Each prompt's row for each of its pictures."""
    return np.repeat(array, times, axis=0)
