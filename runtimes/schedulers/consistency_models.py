"""Consistency sampling: x_next = f(x, s) + sqrt(s_next² - s_min²) z, f = c_skip x + c_out F, with fresh noise z.

Song, Dhariwal, Chen & Sutskever 2023, "Consistency Models", algorithm 1; c_skip = d² / ((s - s_min)² + d²) and c_out =
d (s - s_min) / sqrt(s² + d²), d = sigma_data, so that f is x itself at s_min: appendix C.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from .base import Generators, Step, Timestep
from .discrete import DiscreteScheduler
from .edm_euler import check_range
from .parameterization import Array
from .steps import draw, stepped, unit_variance, working


class CMStochasticIterativeScheduler(DiscreteScheduler):
    """diffusers' `CMStochasticIterativeScheduler`. Custom `timesteps`, falling as everywhere, are places among training's
    noise levels counted from the highest, and a run takes them from the last: [22, 0] is the paper's two-step run."""

    space = "exploding"
    compatibles: ClassVar[tuple[str, ...]] = ()
    custom_schedules: ClassVar[tuple[str, ...]] = ("timesteps",)
    defaults: ClassVar[dict[str, Any]] = {
        "num_train_timesteps": 40,
        "sigma_min": 0.002,
        "sigma_max": 80.0,
        "sigma_data": 0.5,
        "s_noise": 1.0,
        "rho": 7.0,
        "clip_denoised": True,
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
        """From the sample (batch, ...) at a timestep to the next. Noise is drawn at every step of a run of several."""
        out, x = working(model_output, sample)
        config, at = self.config, self._index(timestep)
        sigma, sigma_next, data = self.sigmas[at], self.sigmas[at + 1], np.float32(config.sigma_data)
        least = np.float32(config.sigma_min)
        skip = data**2 / ((sigma - least) ** 2 + data**2)
        scale = (sigma - least) * data / np.sqrt(sigma**2 + data**2)
        x0 = scale * out + skip * x
        if config.clip_denoised:
            x0 = np.clip(x0, -1, 1)
        prev = x0
        if len(self.timesteps) > 1:
            raised = np.clip(sigma_next, least, np.float32(config.sigma_max))
            spread = np.sqrt(np.maximum(raised**2 - np.float32(config.sigma_min**2), 0))
            prev = x0 + draw(model_output, generator) * np.float32(config.s_noise) * spread
        self._step_index = at + 1
        return stepped(prev, x0, model_output)

    @property
    def init_noise_sigma(self) -> float:
        """What the first noise is multiplied with."""
        return float(self.config.sigma_max)

    def scale_model_input(self, sample: Array, timestep: Timestep) -> Array:
        """The sample as the model wants to see it: of unit variance."""
        return unit_variance(sample, self._sigma_seen(timestep), self.config.sigma_data)

    def _check_options(self) -> None:
        check_range(self.config)

    def _trained(self) -> None:
        self._use(np.arange(self.config.num_train_timesteps)[::-1])

    def _schedule(self, steps: int) -> None:
        self._use((np.arange(steps) * (self.config.num_train_timesteps // steps))[::-1])
        self.num_inference_steps = steps

    def _schedule_along(self, name: str, values: NDArray[np.float64]) -> None:  # noqa: ARG002  # timesteps only
        self._use(self._falling(values))
        self.num_inference_steps = len(values)

    def _use(self, timesteps: Array) -> None:
        config = self.config
        ramp = timesteps[::-1] / max(config.num_train_timesteps - 1, 1)
        root = 1 / config.rho
        low, high = config.sigma_min**root, config.sigma_max**root
        levels = (high + ramp * (low - high)) ** config.rho
        self.timesteps = (250 * np.log(levels + 1e-44)).astype(np.float32)
        self.sigmas = np.append(levels, config.sigma_min).astype(np.float32)
