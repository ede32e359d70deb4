"""DPM-Solver-2 in the noise level: x_next = x + (s_next - s) d', d' = (x' - x0') / s', from the point half-way in ln s.

s' = sqrt(s s_next), and x' = x + (s' - s) (x - x0) / s is Euler's step to there: Crowson's k-diffusion (`sample_dpm_2`),
after Lu et al. 2022, "DPM-Solver", and Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based Generative
Models", algorithm 2. The last step, to s = 0, is Euler's.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from . import schedules
from .base import Generators, Step, Timestep
from .discrete import DiscreteScheduler
from .parameterization import Array, to_x0_exploding
from .steps import stepped, working


class KDPM2DiscreteScheduler(DiscreteScheduler):
    """diffusers' `KDPM2DiscreteScheduler`: two model calls for each step but the last, each a call of `step`."""

    space = "exploding"
    order = 2
    defaults: ClassVar[dict[str, Any]] = {
        "num_train_timesteps": 1000,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "linear",
        "trained_betas": None,
        "use_karras_sigmas": False,
        "use_exponential_sigmas": False,
        "use_beta_sigmas": False,
        "prediction_type": "epsilon",
        "timestep_spacing": "linspace",
        "steps_offset": 0,
    }
    choices: ClassVar[dict[str, tuple[Any, ...]]] = {"prediction_type": ("epsilon", "v_prediction")}

    _start: Array | None  # the sample at the start of a step whose second call is due
    _middles: schedules.Floats  # the noise level half-way of each step

    def step(
        self,
        model_output: Array,
        timestep: Timestep,
        sample: Array,
        *,
        generator: Generators = None,  # noqa: ARG002  # one call for all schedulers
        eta: float = 0.0,  # noqa: ARG002
    ) -> Step:
        """From the sample (batch, ...) at a timestep to the middle of a step, or with the slope there to its end."""
        out, x = working(model_output, sample)
        last, at = 2 * self._steps - 2, self._index(timestep)
        sigma, middle, sigma_next = levels_of(self.sigmas, self._middles, at)
        seen = sigma if self._start is None else middle
        x0 = to_x0_exploding(self.config.prediction_type, out, x, seen)
        slope = (x - x0) / seen
        if self._start is None:
            self._start, target = (x if at < last else None), middle
        else:
            x, self._start, target = self._start, None, sigma_next
        self._step_index = at + 1
        return stepped(x + slope * (target - sigma), x0, model_output)

    def _sigma_seen(self, timestep: Timestep) -> Any:
        at = self._index(timestep)
        return self.sigmas[at] if self._start is None else self._middles[at // 2]

    def _restart(self) -> None:
        super()._restart()
        self._start = None

    def _schedule(self, steps: int) -> None:
        even = self._spaced(steps, whole=False)
        timesteps, sigmas = run_levels(self.config, self.alphas_cumprod, even, steps)
        logs = schedules.log(sigmas[:-1])
        self._middles = half_way(logs[1:], logs[:-1])
        self.sigmas = np.append(schedules.twice(sigmas), sigmas[-1:])
        self.timesteps = between(timesteps, self._middles, self.alphas_cumprod)
        self.num_inference_steps = steps


def run_levels(config: Any, bars: schedules.Floats, timesteps: Array, steps: int) -> tuple[Array, schedules.Floats]:
    """Timesteps (steps,) and noise levels (steps + 1,) of the steps' starts, the last level being 0."""
    rounded = config.use_karras_sigmas
    timesteps, sigmas = schedules.follow(config, bars, timesteps.astype(np.float32), steps, ends="run", rounded=rounded)
    return timesteps, np.append(sigmas, 0).astype(np.float32)


def half_way(near: schedules.Floats, far: schedules.Floats) -> schedules.Floats:
    """The noise levels half-way between two logarithms of them, and 0 for the last step, which is Euler's."""
    middles = np.exp((far - (far - near) * np.float32(0.5)).astype(np.float64))
    return np.append(middles, 0).astype(np.float32)


def between(timesteps: Array, middles: schedules.Floats, bars: schedules.Floats) -> schedules.Floats:
    """The timesteps of a run's calls: those of the steps' starts, with those of the middles between them."""
    inner = schedules.timesteps_of(middles[:-1], np.log(schedules.sigmas_of(bars)))
    pairs = np.stack([inner, timesteps[1:]], axis=1).ravel()
    return np.concatenate([timesteps[:1], pairs]).astype(np.float32)


def levels_of(sigmas: schedules.Floats, middles: schedules.Floats, at: int) -> tuple[Any, Any, Any]:
    """Noise level at the start, in the middle and at the end of the step that call `at` belongs to."""
    step = at // 2
    return sigmas[2 * step], middles[step], sigmas[2 * step + 1]
