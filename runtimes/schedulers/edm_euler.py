"""EDM's sampler without correction: x_next = x + (x - x0) / s' (s_next - s'), x0 = c_skip x + c_out F(c_in x; ln(s') / 4).

Karras, Aittala, Aila & Laine 2022, "Elucidating the Design Space of Diffusion-Based Generative Models": table 1 for the
preconditioning of the network F, equation 5 for the noise levels, algorithm 2 for the noise that raises s to s'.
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
from .parameterization import Array, to_x0_preconditioned
from .steps import churned, stepped, unit_variance, working


class EDMEulerScheduler(DiscreteScheduler):
    """diffusers' `EDMEulerScheduler`. Custom `sigmas` are, as there, places on the schedule: 0 at sigma_max, 1 at sigma_min."""

    space = "exploding"
    compatibles: ClassVar[tuple[str, ...]] = ()
    custom_schedules: ClassVar[tuple[str, ...]] = ("sigmas",)
    defaults: ClassVar[dict[str, Any]] = {
        "sigma_min": 0.002,
        "sigma_max": 80.0,
        "sigma_data": 0.5,
        "sigma_schedule": "karras",
        "num_train_timesteps": 1000,
        "prediction_type": "epsilon",
        "rho": 7.0,
        "final_sigmas_type": "zero",
    }
    choices: ClassVar[dict[str, tuple[Any, ...]]] = {"prediction_type": ("epsilon", "v_prediction")}

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
        x0 = to_x0_preconditioned(self.config.prediction_type, out, x, raised, self.config.sigma_data)
        self._step_index = at + 1
        return stepped(x + (x - x0) / raised * (sigma_next - raised), x0, model_output)

    @property
    def init_noise_sigma(self) -> float:
        """What the first noise is multiplied with."""
        return float(math.hypot(self.config.sigma_max, 1))

    def scale_model_input(self, sample: Array, timestep: Timestep) -> Array:
        """The sample as the model wants to see it: of unit variance."""
        return unit_variance(sample, self._sigma_seen(timestep), self.config.sigma_data)

    def _check_options(self) -> None:
        check_range(self.config)

    def _trained(self) -> None:
        train = self.config.num_train_timesteps
        self._use(np.arange(train + 1) / train)

    def _schedule(self, steps: int) -> None:
        self._use(np.linspace(0, 1, steps))
        self.num_inference_steps = steps

    def _schedule_along(self, name: str, values: NDArray[np.float64]) -> None:
        if (values > 1).any():
            raise InputError(
                f"{name} of EDMEulerScheduler are places from 0 (sigma_max) to 1 (sigma_min); got {values.tolist()}"
            )
        self._use(values)
        self.num_inference_steps = len(values)

    def _use(self, ramp: Array) -> None:
        levels = levels_along(self.config, ramp).astype(np.float32)
        self.timesteps = np.float32(0.25) * schedules.log(levels)
        self.sigmas = np.append(levels, levels[-1] if self.config.final_sigmas_type == "sigma_min" else np.float32(0))


def check_range(config: Any) -> None:
    """Raise InputError unless 0 < sigma_min < sigma_max."""
    if not 0 < config.sigma_min < config.sigma_max:
        raise InputError(f"sigma_min={config.sigma_min!r} and sigma_max={config.sigma_max!r} must rise from above 0")


def levels_along(config: Any, ramp: Array) -> Array:
    """The noise levels at places 0..1 of the config's schedule, falling; the exponential one takes only their number."""
    low, high, root = config.sigma_min, config.sigma_max, 1 / config.rho
    if config.sigma_schedule == "exponential":
        exponents = schedules.linspace(math.log(low), math.log(high), len(ramp))
        return np.exp(exponents.astype(np.float64))[::-1]
    levels: Array = (high**root + ramp * (low**root - high**root)) ** config.rho
    return levels
