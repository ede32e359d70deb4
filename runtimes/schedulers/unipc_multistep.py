"""UniPC: x_t = (s_t/s_s) x - a_t (e^g - 1) m0 - a_t B(g) sum of rho_k D_k, g = -h, once to predict and once to correct.

h = l_t - l_s with l = ln(a/s), for x = a x0 + s eps; m0 is the predicted x0, D_k = (m_k - m0) / r_k are its differences over
the steps before. The corrector makes the last step again with the new prediction among the D_k. B is g ("bh1") or e^g - 1
("bh2"); the rho solve sum of r_k^i rho_k = b_i. Zhao, Bai, Rao, Zhou & Lu 2023, "UniPC", algorithms 1 and 2, equation 12.
With `predict_x0` false the noise is expanded: s_t for a_t, a_t/a_s for s_t/s_s, and g = h.
"""

from __future__ import annotations

from collections import deque
from typing import Any, ClassVar

import numpy as np

from ..errors import InputError
from . import schedules
from .base import Generators, Step, Timestep
from .discrete import DiscreteScheduler, stepped, working
from .parameterization import Array, Level, level, threshold, to_noise, to_x0


class UniPCMultistepScheduler(DiscreteScheduler):
    """diffusers' `UniPCMultistepScheduler`, but for flow matching and `solver_p`."""

    space = "preserving"
    defaults: ClassVar[dict[str, Any]] = {
        "num_train_timesteps": 1000,
        "beta_start": 0.0001,
        "beta_end": 0.02,
        "beta_schedule": "linear",
        "trained_betas": None,
        "solver_order": 2,
        "prediction_type": "epsilon",
        "thresholding": False,
        "dynamic_thresholding_ratio": 0.995,
        "sample_max_value": 1.0,
        "predict_x0": True,
        "solver_type": "bh2",
        "lower_order_final": True,
        "disable_corrector": [],
        "solver_p": None,
        "use_karras_sigmas": False,
        "use_exponential_sigmas": False,
        "use_beta_sigmas": False,
        "use_flow_sigmas": False,
        "flow_shift": 1.0,
        "timestep_spacing": "linspace",
        "steps_offset": 0,
        "final_sigmas_type": "zero",
        "rescale_betas_zero_snr": False,
        "use_dynamic_shifting": False,
        "time_shift_type": "exponential",
        "sigma_min": None,
        "sigma_max": None,
        "shift_terminal": None,
    }
    choices: ClassVar[dict[str, tuple[Any, ...]]] = {"solver_type": ("bh1", "bh2")}
    aliases: ClassVar[dict[str, dict[Any, Any]]] = {
        "solver_type": {"midpoint": "bh2", "heun": "bh2", "logrho": "bh2"}  # other classes' solvers
    }

    _predicted: deque[Array]  # what the solver expands, newest last
    _last: Array | None  # the sample that the last step began at
    _last_order: int

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
        steps, at = self._steps, self._index(timestep)
        predicted, x0 = self._predict(out, x, level(self.sigmas[at]))
        if at > 0 and self._last is not None and at - 1 not in self.config.disable_corrector:
            x = self._update(self._last, at - 1, self._last_order, predicted)
        earlier, self._predicted = len(self._predicted), deque([*self._predicted, predicted], self.config.solver_order)
        most = min(self.config.solver_order, steps - at) if self.config.lower_order_final else self.config.solver_order
        self._last, self._last_order, self._step_index = x, min(most, earlier + 1), at + 1
        return stepped(self._update(x, at, self._last_order), x0, model_output)

    def _predict(self, out: Array, x: Array, now: Level) -> tuple[Array, Array]:
        """What the solver expands, finished sample or noise; and the finished sample."""
        kind = self.config.prediction_type
        x0 = to_x0(kind, out, x, now.alpha, now.sigma)
        if not self.config.predict_x0:
            return to_noise(kind, out, x, now.alpha, now.sigma), x0
        if self.config.thresholding:
            x0 = threshold(x0, self.config.dynamic_thresholding_ratio, self.config.sample_max_value)
        return x0, x0

    def _update(self, x: Array, at: int, order: int, corrected_by: Array | None = None) -> Array:
        """The step from place `at` to the next: UniP, or UniC when the prediction at its end is known."""
        target, now = level(self.sigmas[at + 1]), level(self.sigmas[at])
        h = target.log_snr - now.log_snr
        order = order if h else 1  # a last step of no length (Karras sigmas down to sigma_min) has no differences
        g = -h if self.config.predict_x0 else h
        growth = schedules.expm1(g)
        data = self.config.predict_x0
        kept = target.sigma / now.sigma if data else target.alpha / now.alpha
        scale = target.alpha if data else target.sigma
        newest, *older = reversed(self._predicted)
        ratios = [(level(self.sigmas[at - k]).log_snr - now.log_snr) / h for k in range(1, order)]
        differences = [(prediction - newest) / ratio for prediction, ratio in zip(older, ratios, strict=False)]
        if corrected_by is not None:
            differences.append(corrected_by - newest)
            ratios.append(np.float32(1))
        result: Array = kept * x - scale * growth * newest
        if differences:
            size = g if self.config.solver_type == "bh1" else growth
            exact = order > (2 if corrected_by is None else 1)
            weights = _weights(g, growth, size, ratios, exact=exact)
            result = result - scale * size * sum(w * d for w, d in zip(weights, differences, strict=True))
        return result

    def _check_options(self) -> None:
        config = self.config
        if not config.predict_x0 and config.final_sigmas_type == "zero":
            raise InputError("predict_x0=False cannot end at final_sigmas_type='zero'; 'sigma_min' would do")
        if config.solver_order > 1 and not config.lower_order_final and config.final_sigmas_type == "zero":
            raise InputError(
                "lower_order_final=False with final_sigmas_type='zero' divides by zero at the last step; "
                "final_sigmas_type='sigma_min' or solver_order=1 would do"
            )

    def _restart(self) -> None:
        super()._restart()
        self._predicted = deque(maxlen=self.config.solver_order)
        self._last = None
        self._last_order = 0

    def _schedule(self, steps: int) -> None:
        table = schedules.sigmas_of(self.alphas_cumprod)
        respaced = schedules.respaced(self.config, table[::-1], steps)
        timesteps: Array = self._spaced(steps, extra=1)
        sigmas = np.interp(timesteps, np.arange(len(table)), table) if respaced is None else respaced
        if respaced is not None:
            timesteps = schedules.timesteps_of(respaced, np.log(table))
        if self.config.use_karras_sigmas:
            timesteps = timesteps.round()
        lowest = table[0] if respaced is None else respaced[-1]
        final = lowest if self.config.final_sigmas_type == "sigma_min" else 0
        self.timesteps, self.num_inference_steps = timesteps.astype(np.int64), len(timesteps)
        self.sigmas = np.append(sigmas, final).astype(np.float32)


def _weights(g: Any, growth: Any, size: Any, ratios: list[Any], *, exact: bool) -> Array:
    """The rho that make the step exact for polynomials of as many degrees as there are differences; one half for one."""
    if not exact:
        return np.array([0.5], dtype=np.float32)
    phi, factorial, targets = growth / g - 1, 1, []
    for i in range(1, len(ratios) + 1):
        targets.append(phi * factorial / size)
        factorial *= i + 1
        phi = phi / g - np.float32(1 / factorial)
    powers = np.stack([np.array(ratios, dtype=np.float32) ** i for i in range(len(ratios))])
    return np.linalg.solve(powers, np.array(targets, dtype=np.float32))
