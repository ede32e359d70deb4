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
from numpy.typing import NDArray

from ..errors import InputError
from . import flow, schedules
from .base import Generators, Step, Timestep
from .discrete import DiscreteScheduler
from .multistep import PREDICTIONS, check_flow
from .parameterization import Array, predictions
from .steps import stepped, working

_NEAR_ONE = 1e-6


class UniPCMultistepScheduler(DiscreteScheduler):
    """diffusers' `UniPCMultistepScheduler`, but for `solver_p`. `sigmas` are for flow matching, given before the shift."""

    space = "preserving"
    mu_may_idle = True
    custom_schedules: ClassVar[tuple[str, ...]] = ("sigmas",)
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
    choices: ClassVar[dict[str, tuple[Any, ...]]] = {"solver_type": ("bh1", "bh2"), "prediction_type": PREDICTIONS}
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
        data = self.config.predict_x0
        bounded = data and self.config.thresholding
        predicted, x0 = predictions(self.config, out, x, self._level(at), data=data, bounded=bounded)
        if at > 0 and self._last is not None and at - 1 not in self.config.disable_corrector:
            x = self._update(self._last, at - 1, self._last_order, predicted)
        earlier, self._predicted = len(self._predicted), deque([*self._predicted, predicted], self.config.solver_order)
        most = min(self.config.solver_order, steps - at) if self.config.lower_order_final else self.config.solver_order
        self._last, self._last_order, self._step_index = x, min(most, earlier + 1), at + 1
        return stepped(self._update(x, at, self._last_order), x0, model_output)

    def _update(self, x: Array, at: int, order: int, corrected_by: Array | None = None) -> Array:
        """The step from place `at` to the next: UniP, or UniC when the prediction at its end is known."""
        target, now = self._level(at + 1), self._level(at)
        h = target.log_snr - now.log_snr
        order = order if h else 1  # a last step of no length (Karras sigmas down to sigma_min) has no differences
        g = -h if self.config.predict_x0 else h
        growth = schedules.expm1(g)
        data = self.config.predict_x0
        kept = target.sigma / now.sigma if data else target.alpha / now.alpha
        scale = target.alpha if data else target.sigma
        newest, *older = reversed(self._predicted)
        ratios = [(self._level(at - k).log_snr - now.log_snr) / h for k in range(1, order)]
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
        check_flow(config, data=config.predict_x0, rules=("use_exponential_sigmas", "use_beta_sigmas"))
        if config.shift_terminal is not None and not config.use_flow_sigmas:
            raise InputError(f"shift_terminal={config.shift_terminal!r} needs use_flow_sigmas=True")
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
        config, bars = self.config, self.alphas_cumprod
        if config.use_flow_sigmas:
            return self._flow(steps)
        timesteps, sigmas = schedules.follow(
            config, bars, self._spaced(steps, extra=1), steps, ends="training", rounded=config.use_karras_sigmas
        )
        laid = config.use_karras_sigmas or config.use_exponential_sigmas or config.use_beta_sigmas
        return self._use(timesteps, sigmas, sigmas[-1] if laid else schedules.sigmas_of(bars[:1])[0])

    def _schedule_along(self, name: str, values: NDArray[np.float64]) -> None:
        if not self.config.use_flow_sigmas or self.config.use_karras_sigmas:
            raise InputError(f"{name} can be given with use_flow_sigmas=True alone, without use_karras_sigmas")
        self._flow(len(values), values)

    def _flow(self, steps: int, given: NDArray[np.float64] | None = None) -> None:
        config, train = self.config, self.config.num_train_timesteps
        if config.use_karras_sigmas:
            # laid between the ends of training, as ratios sigma / alpha, which then become a flow's levels
            ratios: Any = schedules.respaced(config, schedules.sigmas_of(self.alphas_cumprod)[::-1], steps)
            sigmas: Array = ratios / (ratios + 1)
        else:
            even = np.linspace(1, 1 / train, steps + 1)[:-1] if given is None else given
            sigmas = flow.moved(config, even, config.flow_shift, self._mu)
            if abs(sigmas[0] - 1) < _NEAR_ONE:  # where alpha is 0, its logarithm is not finite
                sigmas = np.append(sigmas[0] - _NEAR_ONE, sigmas[1:])
        self._use(sigmas * train, sigmas, sigmas[-1])

    def _use(self, timesteps: Array, sigmas: Array, lowest: Any) -> None:
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
