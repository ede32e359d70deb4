"""DPM-Solver-2 with ancestral noise: the step of KDPM2 down to s_down, then noise up to s_next, s_down² + s_up² = s_next².

As Crowson's k-diffusion has it (`sample_dpm_2_ancestral`), s_up² = s_next² (s² - s_next²) / s²: Song et al. 2021,
"Score-Based Generative Modeling through SDEs", appendix F; the step: Lu et al. 2022, "DPM-Solver".
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from . import schedules
from .base import Generators, Step, Timestep
from .discrete import DiscreteScheduler
from .euler_ancestral_discrete import down_and_up
from .k_dpm_2_discrete import KDPM2DiscreteScheduler, between, half_way, levels_of, run_levels
from .parameterization import Array, to_x0_exploding
from .steps import draw, stepped, working


class KDPM2AncestralDiscreteScheduler(DiscreteScheduler):
    """diffusers' `KDPM2AncestralDiscreteScheduler`: two model calls for each step but the last, each a call of `step`."""

    space = "exploding"
    order = 2
    defaults: ClassVar[dict[str, Any]] = KDPM2DiscreteScheduler.defaults
    choices: ClassVar[dict[str, tuple[Any, ...]]] = KDPM2DiscreteScheduler.choices

    _start: Array | None  # the sample at the start of a step whose second call is due
    _middles: schedules.Floats  # the noise level half-way of each step

    def step(
        self,
        model_output: Array,
        timestep: Timestep,
        sample: Array,
        *,
        generator: Generators = None,
        eta: float = 0.0,  # noqa: ARG002  # one call for all schedulers
    ) -> Step:
        """From the sample (batch, ...) at a timestep to the middle of a step, or to its end, where noise is drawn."""
        out, x = working(model_output, sample)
        last, at = 2 * self._steps - 2, self._index(timestep)
        sigma, middle, sigma_next = levels_of(self.sigmas, self._middles, at)
        seen = sigma if self._start is None else middle
        x0 = to_x0_exploding(self.config.prediction_type, out, x, seen)
        slope = (x - x0) / seen
        if self._start is None:
            self._start, prev = (x if at < last else None), x + slope * (middle - sigma)
        else:
            down, up = down_and_up(sigma, sigma_next)
            prev = self._start + slope * (down - sigma) + draw(model_output, generator) * up
            self._start = None
        self._step_index = at + 1
        return stepped(prev, x0, model_output)

    def _sigma_seen(self, timestep: Timestep) -> Any:
        at = self._index(timestep)
        return self.sigmas[at] if self._start is None else self._middles[at // 2]

    def _restart(self) -> None:
        super()._restart()
        self._start = None

    def _schedule(self, steps: int) -> None:
        even = self._spaced(steps, whole=False)
        timesteps, sigmas = run_levels(self.config, self.alphas_cumprod, even, steps)
        down, _ = down_and_up(sigmas[:-2], sigmas[1:-1])
        self._middles = half_way(schedules.log(sigmas[:-2]), schedules.log(down))
        self.sigmas = np.append(schedules.twice(sigmas), sigmas[-1:])
        self.timesteps = between(timesteps, self._middles, self.alphas_cumprod)
        self.num_inference_steps = steps
