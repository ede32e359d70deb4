"""Ancestral sampling: Euler's step down to s_down, then noise up to s_next, s_down² + s_up² = s_next².

Song et al. 2021, "Score-Based Generative Modeling through SDEs", appendix F, in the form of Crowson's k-diffusion
(`sample_euler_ancestral`): s_up² = s_next² (s² - s_next²) / s².
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from . import schedules
from .base import Generators, Step, Timestep
from .discrete import DiscreteScheduler
from .parameterization import Array, to_x0_exploding
from .steps import draw, stepped, working


class EulerAncestralDiscreteScheduler(DiscreteScheduler):
    """diffusers' `EulerAncestralDiscreteScheduler`."""

    space = "exploding"
    defaults: ClassVar[dict[str, Any]] = {
        "num_train_timesteps": 1000,
        "beta_start": 0.0001,
        "beta_end": 0.02,
        "beta_schedule": "linear",
        "trained_betas": None,
        "prediction_type": "epsilon",
        "timestep_spacing": "linspace",
        "steps_offset": 0,
        "rescale_betas_zero_snr": False,
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
    ) -> Step:
        """From the sample (batch, ...) at a timestep to the next. Noise is drawn at every step, the last one included."""
        out, x = working(model_output, sample)
        at = self._index(timestep)
        sigma, sigma_next = self.sigmas[at], self.sigmas[at + 1]
        down, up = down_and_up(sigma, sigma_next)
        x0 = to_x0_exploding(self.config.prediction_type, out, x, sigma)
        prev = x + (x - x0) / sigma * (down - sigma) + up * draw(model_output, generator)
        self._step_index = at + 1
        return stepped(prev, x0, model_output)

    def _schedule(self, steps: int) -> None:
        self.timesteps = self._spaced(steps, whole=False).astype(np.float32)
        table = schedules.sigmas_of(self.alphas_cumprod)
        sigmas = np.interp(self.timesteps, np.arange(len(table)), table)
        self.sigmas = np.append(sigmas, 0).astype(np.float32)
        self.num_inference_steps = steps


def down_and_up(sigma: Any, sigma_next: Any) -> tuple[Any, Any]:
    """The level that a step goes down to, and the noise that brings it up to `sigma_next`."""
    # s_down is s_next² / s. diffusers (0.42) takes the root of s_next² - s_up², which rounding spoils where sigma falls far
    # in a step: from very high (cosine betas) it is NaN.
    return sigma_next**2 / sigma, np.sqrt(sigma_next**2 * (sigma**2 - sigma_next**2) / sigma**2)
