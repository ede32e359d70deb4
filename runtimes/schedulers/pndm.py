"""PNDM: the transfer x_prev = sqrt(a_prev/a) x - (a_prev - a) e / (a sqrt(1-a_prev) + sqrt(a (1-a) a_prev)) of a mixed noise e.

Liu, Ren, Lin & Zhao 2022, "Pseudo Numerical Methods for Diffusion Models on Manifolds", equations 9, 12 and 13: e comes
from three Runge-Kutta steps of four model calls each, then from Adams & Bashforth's four-step method. With
`skip_prk_steps` (Crowson's PLMS for latent diffusion) lower orders, and one repeated call, take Runge-Kutta's place.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from ..errors import InputError
from .base import Generators, Step, Timestep
from .discrete import DiscreteScheduler
from .parameterization import Array, to_noise, to_x0
from .steps import stepped, working

# weights of the noises so far, newest first: Adams & Bashforth's methods of orders 1 to 4
_ADAMS = tuple(
    tuple(np.float32(w) for w in row)
    for row in ((1,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))
)
_RUNGE_KUTTA = tuple(np.float32(w) for w in (1 / 6, 1 / 3, 1 / 3, 1 / 6))


class PNDMScheduler(DiscreteScheduler):
    """diffusers' `PNDMScheduler`. `timesteps` is longer than the number of steps: a model call for each entry."""

    defaults: ClassVar[dict[str, Any]] = {
        "num_train_timesteps": 1000,
        "beta_start": 0.0001,
        "beta_end": 0.02,
        "beta_schedule": "linear",
        "trained_betas": None,
        "skip_prk_steps": False,
        "set_alpha_to_one": False,
        "prediction_type": "epsilon",
        "timestep_spacing": "leading",
        "steps_offset": 0,
    }
    choices: ClassVar[dict[str, tuple[Any, ...]]] = {"prediction_type": ("epsilon", "v_prediction")}

    _outputs: list[Array]  # the noises so far, as far as they are needed
    _calls: int

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
        t, self._stride = int(timestep), self.config.num_train_timesteps // self._steps
        advance = self._runge_kutta if self._calls < self._runge_kutta_calls else self._adams
        prev = advance(out, t, x)
        self._calls += 1
        bar = self._alpha_bar(t)
        x0 = to_x0(self.config.prediction_type, out, x, np.sqrt(bar), np.sqrt(1 - bar))
        return stepped(prev, x0, model_output)

    def _runge_kutta(self, out: Array, t: int, x: Array) -> Array:
        """One of the four calls of a step; each starts again from the sample that the first one had."""
        call = self._calls % 4
        if call == 0:
            self._start, self._sum = x, np.zeros_like(out)
            self._outputs.append(out)
        self._sum = self._sum + _RUNGE_KUTTA[call] * out
        origin = int(self.timesteps[self._calls - call])
        target = t - (0 if call % 2 else self._stride // 2)
        return self._transfer(self._start, origin, target, self._sum if call == 3 else out)

    def _adams(self, out: Array, t: int, x: Array) -> Array:
        if self._calls == 1:  # the first step is made again with the mean of the noises at both its ends
            return self._transfer(self._start, t + self._stride, t, (out + self._outputs[-1]) / 2)
        if self._calls == 0:
            self._start = x
        self._outputs = [*self._outputs[-3:], out]
        weights = _ADAMS[len(self._outputs) - 1]
        mixed = sum((w * e for w, e in zip(weights, reversed(self._outputs), strict=True)), np.float32(0))
        return self._transfer(x, t, t - self._stride, np.asarray(mixed))

    def _transfer(self, x: Array, t: int, t_prev: int, out: Array) -> Array:
        bar, bar_prev = self._alpha_bar(t), self._alpha_bar(t_prev)
        eps = to_noise(self.config.prediction_type, out, x, np.sqrt(bar), np.sqrt(1 - bar))
        scale = bar * np.sqrt(1 - bar_prev) + np.sqrt(bar * (1 - bar) * bar_prev)
        moved: Array = np.sqrt(bar_prev / bar) * x - (bar_prev - bar) * eps / scale
        return moved

    def _restart(self) -> None:
        super()._restart()
        self._outputs = []
        self._calls = 0

    def _schedule(self, steps: int) -> None:
        times = self._spaced(steps)
        if self.config.skip_prk_steps:
            self._runge_kutta_calls = 0
            calls = np.concatenate([times[:1], times[1:2], times[1:2], times[2:]])
        else:
            if steps < 4:
                raise InputError(
                    f"{steps} steps are too few for the Runge-Kutta start; take 4 or more, or skip_prk_steps=True"
                )
            self._runge_kutta_calls = 12
            # each step calls at its start, twice half-way, and at its end, which the next step calls again
            half_way = times[1:4] + self.config.num_train_timesteps // steps // 2
            starts = np.stack([times[:3], half_way, half_way, times[1:4]], axis=1).ravel()
            calls = np.concatenate([starts, times[3:]])
        self._use_whole_timesteps(calls)
        self.num_inference_steps = steps
