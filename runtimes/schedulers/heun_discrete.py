"""Heun's method: x_next = x + (s_next - s) (d + d') / 2, d = (x - x0) / s, d' the same at the end of Euler's step.

Karras, Aittala, Aila & Laine 2022, "Elucidating the Design Space of Diffusion-Based Generative Models", algorithm 1; the
last step, to s = 0, is Euler's.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from . import schedules
from .base import Generators, Step, Timestep
from .discrete import DiscreteScheduler
from .parameterization import Array, to_x0_exploding
from .steps import stepped, working


class HeunDiscreteScheduler(DiscreteScheduler):
    """diffusers' `HeunDiscreteScheduler`: two model calls for each step but the last, each a call of `step`."""

    space = "exploding"
    order = 2
    custom_schedules: ClassVar[tuple[str, ...]] = ("timesteps",)
    defaults: ClassVar[dict[str, Any]] = {
        "num_train_timesteps": 1000,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "linear",
        "trained_betas": None,
        "prediction_type": "epsilon",
        "use_karras_sigmas": False,
        "use_exponential_sigmas": False,
        "use_beta_sigmas": False,
        "clip_sample": False,
        "clip_sample_range": 1.0,
        "timestep_spacing": "linspace",
        "steps_offset": 0,
    }
    choices: ClassVar[dict[str, tuple[Any, ...]]] = {
        "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2", "exp")
    }

    _half: tuple[Array, Array] | None  # the sample and the slope at the start of a step whose second call is due

    def step(
        self,
        model_output: Array,
        timestep: Timestep,
        sample: Array,
        *,
        generator: Generators = None,  # noqa: ARG002  # one call for all schedulers
        eta: float = 0.0,  # noqa: ARG002
    ) -> Step:
        """From the sample (batch, ...) at a timestep to the end of a step, or again to there with the mean of two slopes."""
        out, x = working(model_output, sample)
        last, at = 2 * self._steps - 2, self._index(timestep)
        start = at if self._half is None else at - 1
        sigma, sigma_next = self.sigmas[start], self.sigmas[start + 1]
        seen = sigma if self._half is None else sigma_next
        x0 = to_x0_exploding(self.config.prediction_type, out, x, seen)
        if self.config.clip_sample:
            x0 = np.clip(x0, -self.config.clip_sample_range, self.config.clip_sample_range)
        slope = (x - x0) / seen
        if self._half is None:
            self._half = (x, slope) if at < last else None
        else:
            x, before = self._half
            slope, self._half = (before + slope) / 2, None
        self._step_index = at + 1
        return stepped(x + slope * (sigma_next - sigma), x0, model_output)

    def _restart(self) -> None:
        super()._restart()
        self._half = None

    def _schedule(self, steps: int) -> None:
        self._follow(self._spaced(steps, whole=False).astype(np.float32), steps)

    def _schedule_along(self, name: str, values: NDArray[np.float64]) -> None:
        config = self.config
        if config.use_karras_sigmas or config.use_exponential_sigmas or config.use_beta_sigmas:
            raise InputError(
                f"{name} cannot be given where the config lays out the sigmas (Karras, exponential, beta); "
                "give num_inference_steps"
            )
        self._follow(values.astype(np.float32), len(values))

    def _follow(self, timesteps: Array, steps: int) -> None:
        timesteps, sigmas = schedules.follow(self.config, self.alphas_cumprod, timesteps, steps, ends="run")
        self.timesteps = schedules.twice(timesteps).astype(np.float32)
        self.sigmas = np.append(schedules.twice(sigmas), 0).astype(np.float32)
        self.num_inference_steps = steps
