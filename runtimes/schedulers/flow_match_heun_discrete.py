"""Heun's method on a straight flow: x_next = x + (s_next - s) (v + v') / 2, v' being the velocity at the end of Euler's step.

Liu, Gong & Liu 2022, "Flow Straight and Fast", in the form of Karras et al. 2022, "Elucidating the Design Space", algorithm
1; the last step, to s = 0, is Euler's.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np

from . import flow, schedules
from .base import Generators, Step, Timestep
from .discrete import DiscreteScheduler
from .flow_match_euler_discrete import trained_sigmas
from .parameterization import Array
from .steps import churned, stepped, working


class FlowMatchHeunDiscreteScheduler(DiscreteScheduler):
    """diffusers' `FlowMatchHeunDiscreteScheduler`: two model calls for each step but the last, each a call of `step`."""

    space = "flow"
    order = 2
    compatibles: ClassVar[tuple[str, ...]] = ()
    defaults: ClassVar[dict[str, Any]] = {"num_train_timesteps": 1000, "shift": 1.0}

    _half: tuple[Array, Array] | None  # the sample and the velocity at the start of a step whose second call is due

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
        """From the sample (batch, ...) at a timestep to the next. `s_*` add noise before each call: algorithm 2."""
        out, x = working(model_output, sample)
        last, at = 2 * self._steps - 2, self._index(timestep)
        start = at if self._half is None else at - 1
        sigma, sigma_next = self.sigmas[start], self.sigmas[start + 1]
        gamma = min(s_churn / (len(self.sigmas) - 1), math.sqrt(2) - 1) if s_tmin <= sigma <= s_tmax else 0.0
        x, raised = churned(x, sigma, gamma, s_noise, model_output, generator)
        seen, level = (sigma, raised) if self._half is None else (sigma_next, sigma_next)
        x0 = x - out * seen
        # the velocity again, without the noise's share: rounded as diffusers does, which low levels make visible
        velocity = (x - x0) / level
        if self._half is None:
            self._half = (x, velocity) if at < last else None
        else:
            x, before = self._half
            velocity, self._half = (before + velocity) / 2, None
        self._step_index = at + 1
        return stepped(x + velocity * (sigma_next - raised), x0, model_output)

    def scale_noise(self, sample: Array, timestep: Any, noise: Array) -> Array:
        """`add_noise` under the name, and with the order of arguments, that flow matching has in diffusers."""
        return self.add_noise(sample, noise, timestep)

    def _restart(self) -> None:
        super()._restart()
        self._half = None

    def _trained(self) -> None:
        self.sigmas = trained_sigmas(self.config.num_train_timesteps, self.config.shift)
        self.timesteps = self.sigmas * self.config.num_train_timesteps
        self._ends = float(self.sigmas[0]), float(self.sigmas[-1])

    def _schedule(self, steps: int) -> None:
        train = self.config.num_train_timesteps  # the ends are shifted already, and all once more: as diffusers has it
        even = np.linspace(self._ends[0] * train, self._ends[1] * train, steps) / train
        sigmas = flow.shifted(even, self.config.shift).astype(np.float32)
        self.timesteps = schedules.twice(sigmas * train)
        self.sigmas = np.append(schedules.twice(sigmas), np.float32(0))
        self.num_inference_steps = steps
