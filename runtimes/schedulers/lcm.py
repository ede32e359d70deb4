"""Latent consistency: d = c_out x0 + c_skip x, then x_prev = sqrt(a_prev) d + sqrt(1 - a_prev) z, but d at the last step.

c_skip = q² / (u² + q²), c_out = u / sqrt(u² + q²), u = timestep_scaling t, q = 0.5; a is alpha-bar, z is fresh noise.
Luo, Tan, Huang, Li & Zhao 2023, "Latent Consistency Models", after Song et al. 2023, "Consistency Models", algorithm 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from . import schedules
from .base import Generators, Step, Timestep
from .ddim import DDIMScheduler, clipped
from .discrete import DiscreteScheduler
from .parameterization import Array, to_x0
from .steps import draw, stepped, working

_SIGMA_DATA = np.float32(0.5)


class DistilledScheduler(DiscreteScheduler):
    """For models that were distilled at a few timesteps: a run takes some of those, so that `timestep_spacing` and
    `steps_offset` do not act."""

    compatibles: ClassVar[tuple[str, ...]] = ()
    custom_schedules: ClassVar[tuple[str, ...]] = ("timesteps",)
    every_timestep: ClassVar[bool] = False  # whether a given `original_inference_steps` opens all timesteps of training

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        *,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
        original_inference_steps: int | None = None,
        strength: float = 1.0,
    ) -> None:
        """As everywhere; `original_inference_steps` replaces the config's, `strength` cuts the schedule's noisy end off."""
        given = original_inference_steps is not None
        original = original_inference_steps if given else self.config.original_inference_steps
        self._original = schedules.check_steps(original, self.config.num_train_timesteps, "original_inference_steps")
        self._every = given and self.every_timestep
        if not 0 < strength <= 1:
            raise InputError(f"strength must be above 0 and at most 1, not {strength!r}")
        self._strength = strength
        super().set_timesteps(num_inference_steps, timesteps=timesteps, sigmas=sigmas, mu=mu)

    def _schedule(self, steps: int) -> None:
        train = self.config.num_train_timesteps
        stride = train // self._original
        distilled = (np.arange(1, int(self._original * self._strength) + 1) * stride - 1)[::-1]
        if self._every:
            distilled = np.arange(int(train * self._strength))[::-1]
        if steps > min(len(distilled), self._original):
            raise InputError(
                f"{steps} steps are more than the {min(len(distilled), self._original)} timesteps that original_inference_steps="
                f"{self._original} and strength={self._strength} leave; take fewer steps"
            )
        evenly = np.linspace(0, len(distilled), steps, endpoint=False)
        self._use_whole_timesteps(distilled[np.floor(evenly).astype(np.int64)])

    def _schedule_along(self, name: str, values: NDArray[np.float64]) -> None:  # noqa: ARG002  # timesteps only
        whole = self._falling(values)
        cut = len(whole) - min(int(len(whole) * self._strength), len(whole))
        if cut == len(whole):
            raise InputError(f"strength={self._strength} leaves none of the {len(whole)} timesteps")
        self._use_whole_timesteps(whole[cut:])
        self.num_inference_steps = len(whole)  # with noise after the last step of a cut schedule: as in diffusers


class LCMScheduler(DistilledScheduler):
    """diffusers' `LCMScheduler`."""

    defaults: ClassVar[dict[str, Any]] = DDIMScheduler.defaults | {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "clip_sample": False,
        "original_inference_steps": 50,
        "timestep_scaling": 10.0,
    }

    def step(
        self,
        model_output: Array,
        timestep: Timestep,
        sample: Array,
        *,
        generator: Generators = None,
        eta: float = 0.0,  # noqa: ARG002  # one call for all schedulers
    ) -> Step:
        """From the sample (batch, ...) at a timestep to the next."""
        out, x = working(model_output, sample)
        steps, at, t = self._steps, self._index(timestep), int(timestep)
        bar = self._alpha_bar(t)
        bar_prev = self._alpha_bar(int(self.timesteps[at + 1])) if at + 1 < len(self.timesteps) else bar
        x0 = clipped(self.config, to_x0(self.config.prediction_type, out, x, np.sqrt(bar), np.sqrt(1 - bar)))
        scaled = np.float32(t * self.config.timestep_scaling)
        spread = scaled**2 + _SIGMA_DATA**2
        denoised = scaled / np.sqrt(spread) * x0 + _SIGMA_DATA**2 / spread * x
        prev = denoised
        if at != steps - 1:
            prev = np.sqrt(bar_prev) * denoised + np.sqrt(1 - bar_prev) * draw(model_output, generator)
        self._step_index = at + 1
        return stepped(prev, denoised, model_output)
