"""Trajectory consistency: x_s = sqrt(a_s) x0 + sqrt(1 - a_s) e, then x_prev = sqrt(a_prev/a_s) x_s + sqrt(1 - a_prev/a_s) z.

s = (1 - eta) t_prev lies at or before the next timestep t_prev: `eta` 0 steps there without noise, 1 goes to the finished
sample and back. Zheng et al. 2024, "Trajectory Consistency Distillation", algorithm 4 (strategic stochastic sampling, their
gamma); a is alpha-bar, z is fresh noise, x0 and e are what the model predicts.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from ..errors import InputError
from .base import Generators, Step, Timestep
from .lcm import DistilledScheduler, LCMScheduler
from .parameterization import Array, to_noise, to_x0
from .steps import draw, stepped, working


class TCDScheduler(DistilledScheduler):
    """diffusers' `TCDScheduler`. As in LCMScheduler `timestep_spacing` and `steps_offset` do not act, nor does clipping."""

    defaults: ClassVar[dict[str, Any]] = LCMScheduler.defaults
    every_timestep = True
    clips = False

    def step(
        self,
        model_output: Array,
        timestep: Timestep,
        sample: Array,
        *,
        generator: Generators = None,
        eta: float = 0.3,
    ) -> Step:
        """From the sample (batch, ...) at a timestep to the next. `eta` from 0, no noise, to 1, as much as LCM's."""
        if not 0 <= eta <= 1:
            raise InputError(f"eta must be a number from 0 to 1, not {eta!r}")
        out, x = working(model_output, sample)
        steps, at, kind = self._steps, self._index(timestep), self.config.prediction_type
        following = int(self.timesteps[at + 1]) if at + 1 < len(self.timesteps) else 0
        aim = int(np.floor(np.float32(1 - eta) * np.float32(following)))
        bar, bar_prev, bar_aim = (self._alpha_bar(t) for t in (int(timestep), following, aim))
        alpha, sigma = np.sqrt(bar), np.sqrt(1 - bar)
        x0, eps = to_x0(kind, out, x, alpha, sigma), to_noise(kind, out, x, alpha, sigma)
        prev = np.sqrt(bar_aim) * x0 + np.sqrt(1 - bar_aim) * eps
        if eta > 0 and at != steps - 1:
            kept = bar_prev / bar_aim
            prev = np.sqrt(kept) * prev + np.sqrt(1 - kept) * draw(model_output, generator)
        self._step_index = at + 1
        return stepped(prev, x0, model_output)
