"""Linear multistep: x_next = x + sum over j of d_j times the integral of the j-th Lagrange polynomial from s to s_next.

d = (x - x0) / s at the last four noise levels; Adams & Bashforth's method on uneven steps, from Crowson's k-diffusion
(`sample_lms`). The integrals of cubics are exact here (Gauss-Legendre); diffusers takes them from SciPy.
"""

from __future__ import annotations

from collections import deque
from typing import Any, ClassVar

import numpy as np

from . import schedules
from .base import Generators, Step, Timestep
from .discrete import DiscreteScheduler
from .parameterization import Array, to_x0_exploding
from .steps import stepped, working

MOST = 4


class LMSDiscreteScheduler(DiscreteScheduler):
    """diffusers' `LMSDiscreteScheduler`."""

    space = "exploding"
    defaults: ClassVar[dict[str, Any]] = {
        "num_train_timesteps": 1000,
        "beta_start": 0.0001,
        "beta_end": 0.02,
        "beta_schedule": "linear",
        "trained_betas": None,
        "use_karras_sigmas": False,
        "use_exponential_sigmas": False,
        "use_beta_sigmas": False,
        "prediction_type": "epsilon",
        "timestep_spacing": "linspace",
        "steps_offset": 0,
    }

    _slopes: deque[Array]

    def step(
        self,
        model_output: Array,
        timestep: Timestep,
        sample: Array,
        *,
        generator: Generators = None,  # noqa: ARG002  # one call for all schedulers
        eta: float = 0.0,  # noqa: ARG002
    ) -> Step:
        """From the sample (batch, ...) at a timestep to the next."""
        out, x = working(model_output, sample)
        at = self._index(timestep)
        x0 = to_x0_exploding(self.config.prediction_type, out, x, self.sigmas[at])
        self._slopes.appendleft((x - x0) / self.sigmas[at])
        # In a run entered half-way there are fewer slopes than levels at first, and the last weights go unused: as in
        # diffusers.
        levels = self.sigmas[max(at + 1 - MOST, 0) : at + 1][::-1]
        weights = schedules.lagrange_weights(levels, self.sigmas[at], self.sigmas[at + 1]).astype(np.float32)
        prev = x + sum(weight * slope for weight, slope in zip(weights, self._slopes, strict=False))
        self._step_index = at + 1
        return stepped(prev, x0, model_output)

    def _restart(self) -> None:
        super()._restart()
        self._slopes = deque(maxlen=MOST)

    def _schedule(self, steps: int) -> None:
        timesteps: Array = self._spaced(steps, whole=False).astype(np.float32)
        table = schedules.sigmas_of(self.alphas_cumprod)
        sigmas: Array = np.interp(timesteps, np.arange(len(table)), table)
        if (
            self.config.use_karras_sigmas
        ):  # between its own ends even where the config carries another class's sigma_min
            respaced: Array | None = schedules.karras(float(sigmas[0]), float(sigmas[-1]), steps)
        else:
            respaced = schedules.respaced(self.config, sigmas, steps)
        if respaced is not None:
            sigmas, timesteps = respaced, schedules.timesteps_of(respaced, np.log(table))
        self.timesteps = timesteps.astype(np.float32)
        self.sigmas = np.append(sigmas, 0).astype(np.float32)
        self.num_inference_steps = steps
