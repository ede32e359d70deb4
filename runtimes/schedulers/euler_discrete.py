"""Euler's method on the probability flow: x_next = x + (x - x0) / s' (s_next - s'), from the noise level s' = s (1 + gamma).

Karras, Aittala, Aila & Laine 2022, "Elucidating the Design Space of Diffusion-Based Generative Models", algorithm 2
without its second-order correction.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from . import schedules
from .base import Generators, Step, Timestep
from .discrete import DiscreteScheduler
from .parameterization import Array, to_x0_exploding
from .steps import churned, stepped, working


class EulerDiscreteScheduler(DiscreteScheduler):
    """diffusers' `EulerDiscreteScheduler`."""

    space = "exploding"
    defaults: ClassVar[dict[str, Any]] = {
        "num_train_timesteps": 1000,
        "beta_start": 0.0001,
        "beta_end": 0.02,
        "beta_schedule": "linear",
        "trained_betas": None,
        "prediction_type": "epsilon",
        "interpolation_type": "linear",
        "use_karras_sigmas": False,
        "use_exponential_sigmas": False,
        "use_beta_sigmas": False,
        "sigma_min": None,
        "sigma_max": None,
        "timestep_spacing": "linspace",
        "timestep_type": "discrete",
        "steps_offset": 0,
        "rescale_betas_zero_snr": False,
        "final_sigmas_type": "zero",
    }
    choices: ClassVar[dict[str, tuple[Any, ...]]] = {
        "prediction_type": ("epsilon", "sample", "v_prediction", "original_sample"),
        "interpolation_type": ("linear", "log_linear"),
        "timestep_type": ("discrete", "continuous"),
    }
    custom_schedules: ClassVar[tuple[str, ...]] = ("timesteps", "sigmas")

    def step(
        self,
        model_output: Array,
        timestep: Timestep,
        sample: Array,
        *,
        generator: Generators = None,
        eta: float = 0.0,  # noqa: ARG002  # one call for all schedulers
        s_churn: float = 0.0,
        s_tmin: float = 0.0,
        s_tmax: float = math.inf,
        s_noise: float = 1.0,
    ) -> Step:
        """From the sample (batch, ...) at a timestep to the next. `s_*` as in the paper: noise added before each step."""
        out, x = working(model_output, sample)
        at = self._index(timestep)
        sigma, sigma_next = self.sigmas[at], self.sigmas[at + 1]
        gamma = min(s_churn / (len(self.sigmas) - 1), math.sqrt(2) - 1) if s_tmin <= sigma <= s_tmax else 0.0
        x, raised = churned(x, sigma, gamma, s_noise, model_output, generator)
        kind = self.config.prediction_type
        x0 = to_x0_exploding(kind, out, x, raised if kind == "epsilon" else sigma)
        self._step_index = at + 1
        return stepped(x + (x - x0) / raised * (sigma_next - raised), x0, model_output)

    @property
    def _continuous(self) -> bool:
        return bool(self.config.timestep_type == "continuous" and self.config.prediction_type == "v_prediction")

    def _schedule(self, steps: int) -> None:
        self._follow(self._spaced(steps, whole=False).astype(np.float32), steps)

    def _schedule_along(self, name: str, values: NDArray[np.float64]) -> None:
        if name == "sigmas":
            return self._follow_sigmas(values.astype(np.float32))
        config = self.config
        if config.use_karras_sigmas or config.use_exponential_sigmas or config.use_beta_sigmas or self._continuous:
            raise InputError(
                "timesteps cannot be given where the config lays out the sigmas (Karras, exponential, beta, continuous); "
                "give num_inference_steps"
            )
        return self._follow(values.astype(np.float32), len(values))

    def _follow(self, timesteps: Array, steps: int) -> None:
        table = schedules.sigmas_of(self.alphas_cumprod)
        log_table = np.log(table)
        if self.config.interpolation_type == "log_linear":
            exponents = schedules.linspace(log_table[-1], log_table[0], steps + 1)
            sigmas: Array = np.exp(exponents.astype(np.float64)).astype(np.float32)
        else:
            sigmas = np.interp(timesteps, np.arange(len(table)), table)
        respaced = schedules.respaced(self.config, sigmas, steps)
        if respaced is not None:
            sigmas, timesteps = respaced, schedules.timesteps_of(respaced, log_table)
        final = table[0] if self.config.final_sigmas_type == "sigma_min" else 0
        self._set(timesteps, np.append(sigmas, final).astype(np.float32), steps)

    def _follow_sigmas(self, sigmas: Array) -> None:
        """Custom noise levels, the last one that of the finished sample: usually 0."""
        if len(sigmas) < 2 or (sigmas[:-1] <= 0).any():
            raise InputError(f"sigmas must be two or more, above 0 but for the last; got {sigmas.tolist()}")
        log_table = np.log(schedules.sigmas_of(self.alphas_cumprod))
        self._set(schedules.timesteps_of(sigmas[:-1], log_table), sigmas, len(sigmas) - 1)

    def _set(self, timesteps: Array, sigmas: Array, steps: int) -> None:
        if self._continuous:
            timesteps = np.float32(0.25) * schedules.log(sigmas[:-1])
        self.timesteps, self.sigmas, self.num_inference_steps = timesteps.astype(np.float32), sigmas, steps
