"""DPM-Solver++: x_t = (s_t/s_s) x - a_t (e^g - 1) D0 - a_t ((e^g - 1)/g - 1) D1 - a_t ((e^g - 1 - g)/g² - 1/2) D2, g = -h.

h = l_t - l_s with l = ln(a/s), for x = a x0 + s eps; D0 is the predicted x0, D1 and D2 are its divided differences over
the steps before. Lu, Zhou, Bao, Chen, Li & Zhu 2022, "DPM-Solver++", algorithm 2. The midpoint rule has (e^g - 1)/2 for the
factor of D1. "DPM-Solver" (the same authors, 2022) expands the noise: s_t for a_t, a_t/a_s for s_t/s_s, and g = h. The
stochastic kinds add noise at each step, with g = -2h (++), or every term of the expansion doubled.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..noise import randn_tensor
from . import schedules
from .base import Generators, Step, Timestep
from .discrete import DiscreteScheduler, stepped, working
from .parameterization import Array, Level, level, threshold, to_noise, to_x0


class DPMSolverMultistepScheduler(DiscreteScheduler):
    """diffusers' `DPMSolverMultistepScheduler`, but for flow matching."""

    space = "preserving"
    custom_schedules: ClassVar[tuple[str, ...]] = ("timesteps",)
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
        "algorithm_type": "dpmsolver++",
        "solver_type": "midpoint",
        "lower_order_final": True,
        "euler_at_final": False,
        "use_karras_sigmas": False,
        "use_exponential_sigmas": False,
        "use_beta_sigmas": False,
        "use_lu_lambdas": False,
        "use_flow_sigmas": False,
        "flow_shift": 1.0,
        "final_sigmas_type": "zero",
        "lambda_min_clipped": -float("inf"),
        "variance_type": None,
        "timestep_spacing": "linspace",
        "steps_offset": 0,
        "rescale_betas_zero_snr": False,
        "use_dynamic_shifting": False,
        "time_shift_type": "exponential",
    }
    choices: ClassVar[dict[str, tuple[Any, ...]]] = {
        "solver_order": (1, 2, 3),
        "algorithm_type": ("dpmsolver++", "sde-dpmsolver++", "dpmsolver", "sde-dpmsolver"),
        "solver_type": ("midpoint", "heun"),
        "variance_type": (None, "learned", "learned_range"),
    }
    aliases: ClassVar[dict[str, dict[Any, Any]]] = {
        "solver_type": {"logrho": "midpoint", "bh1": "midpoint", "bh2": "midpoint"},  # other classes' solvers
        "lambda_min_clipped": {None: -float("inf")},  # strict JSON writes an infinity as null
    }

    _predicted: deque[Array]  # what the solver expands, newest last

    def step(
        self,
        model_output: Array,
        timestep: Timestep,
        sample: Array,
        *,
        generator: Generators = None,
        eta: float = 0.0,  # noqa: ARG002  # one call for all schedulers
    ) -> Step:
        """From the sample (batch, ...) at a timestep to the next. Noise is drawn in float32 by the sde- kinds only."""
        mean_output = self._mean(model_output, sample)
        out, x = working(mean_output, sample)
        steps, at = self._steps, self._index(timestep)
        predicted, x0 = self._predict(out, x, level(self.sigmas[at]))
        noise = randn_tensor(x.shape, generator) if self._stochastic else None
        earlier, self._predicted = len(self._predicted), deque([*self._predicted, predicted], self.config.solver_order)
        levels = [level(self.sigmas[place]) for place in range(at + 1, at - self._order(at, steps, earlier), -1)]
        prev = solve(self.config, x, levels, list(self._predicted)[::-1], noise)
        self._step_index = at + 1
        return stepped(prev, x0, mean_output)

    @property
    def _stochastic(self) -> bool:
        return bool(self.config.algorithm_type.startswith("sde-"))

    def _order(self, at: int, steps: int, earlier: int) -> int:
        """The order of a step: as many as there are predictions, fewer at the end of a run."""
        config, most = self.config, int(self.config.solver_order)
        short = config.lower_order_final and steps < 15
        if at == steps - 1 and (config.euler_at_final or short or config.final_sigmas_type == "zero"):
            return 1
        return min(most, earlier + 1, 2 if at == steps - 2 and short else 3)

    def _mean(self, model_output: Array, sample: Array) -> Array:
        """The output without the variance that some models of noise predict beside it, which no step needs."""
        if self.config.variance_type and self.config.prediction_type == "epsilon":
            return model_output[:, : sample.shape[1]]
        return model_output

    def _predict(self, out: Array, x: Array, now: Level) -> tuple[Array, Array]:
        """What the solver expands, finished sample or noise; and the finished sample."""
        kind = self.config.prediction_type
        x0 = to_x0(kind, out, x, now.alpha, now.sigma)
        if self.config.thresholding:
            kind, out = "sample", threshold(x0, self.config.dynamic_thresholding_ratio, self.config.sample_max_value)
            x0 = out
        if self.config.algorithm_type.endswith("++"):
            return x0, x0
        return to_noise(kind, out, x, now.alpha, now.sigma), x0

    def _check_options(self) -> None:
        config = self.config
        if not config.algorithm_type.endswith("++") and config.final_sigmas_type == "zero":
            kind = config.algorithm_type
            raise InputError(f"algorithm_type={kind!r} cannot end at final_sigmas_type='zero'; 'sigma_min' would do")

    def _restart(self) -> None:
        super()._restart()
        self._predicted = deque(maxlen=self.config.solver_order)

    def _schedule(self, steps: int) -> None:
        # Timesteps with almost no signal may be left out, which the cosine schedule needs.
        bars = self.alphas_cumprod
        log_snr = schedules.log(np.sqrt(bars)) - schedules.log(np.sqrt(1 - bars))
        last = len(bars) - int(np.searchsorted(log_snr[::-1], self.config.lambda_min_clipped))
        if last < 1:
            raise InputError(f"lambda_min_clipped={self.config.lambda_min_clipped} leaves no timestep")
        timesteps: Array = self._spaced(steps, last=last, extra=1)
        table = schedules.sigmas_of(self.alphas_cumprod)
        respaced = self._respaced(table, steps)
        if respaced is None:
            return self._use(timesteps, np.interp(timesteps, np.arange(len(table)), table))
        timesteps = schedules.timesteps_of(respaced, np.log(table))
        rounded = self.config.use_karras_sigmas or self.config.use_lu_lambdas
        if rounded and self.config.beta_schedule != "squaredcos_cap_v2":
            timesteps = timesteps.round()
        return self._use(timesteps, respaced)

    def _respaced(self, table: Array, steps: int) -> Array | None:
        if self.config.use_lu_lambdas and not self.config.use_karras_sigmas:
            low, high = np.log(table[[0, -1]]).astype(np.float64)
            return np.asarray(np.exp(high + np.linspace(0, 1, steps) * (low - high)))
        return schedules.respaced(self.config, table[::-1], steps)

    def _schedule_along(self, name: str, values: NDArray[np.float64]) -> None:
        config, table = self.config, schedules.sigmas_of(self.alphas_cumprod)
        if config.use_karras_sigmas or config.use_lu_lambdas or config.use_exponential_sigmas or config.use_beta_sigmas:
            raise InputError(
                f"{name} cannot be given where the config lays out the sigmas (Karras, Lu, exponential, beta); "
                "give num_inference_steps"
            )
        whole = values.astype(np.int64)
        self._use(whole, np.interp(whole, np.arange(len(table)), table))

    def _use(self, timesteps: Array, sigmas: Array) -> None:
        final = schedules.sigmas_of(self.alphas_cumprod[:1])[0] if self.config.final_sigmas_type == "sigma_min" else 0
        steps = len(timesteps)
        if (
            self.config.algorithm_type == "sde-dpmsolver"
            and max(self._order(at, steps, at) for at in range(steps)) == 3
        ):
            raise InputError(
                "algorithm_type='sde-dpmsolver' has no third order; solver_order=2 or 'sde-dpmsolver++' would do"
            )
        self.timesteps, self.num_inference_steps = timesteps.astype(np.int64), steps
        self.sigmas = np.append(sigmas, final).astype(np.float32)


def solve(config: Any, x: Array, levels: Sequence[Level], predicted: Sequence[Array], noise: Array | None) -> Array:
    """One step from `levels[1]` to `levels[0]`; the levels after those are of the steps before, as many as the order has.

    `predicted` are finished samples, or noises, newest first; `noise` is fresh, for the stochastic kinds.
    """
    target, now = levels[:2]
    h = target.log_snr - now.log_snr
    order = len(levels) - 1 if h else 1  # a last step of no length (Karras sigmas down to sigma_min) has no differences
    data, doubled = config.algorithm_type.endswith("++"), config.algorithm_type == "sde-dpmsolver"
    g = {"dpmsolver++": -h, "sde-dpmsolver++": -2 * h}.get(config.algorithm_type, h)
    growth = schedules.expm1(g)
    scale = target.alpha if data else target.sigma * np.float32(2 if doubled else 1)
    kept = target.sigma / now.sigma if data else target.alpha / now.alpha
    if config.algorithm_type == "sde-dpmsolver++":
        kept = kept * (schedules.expm1(-h) + 1)
    result: Array = kept * x - scale * growth * predicted[0]
    if order > 1:
        first, second = _differences(levels, predicted, order)
        midpoint = order == 2 and config.solver_type == "midpoint"
        result = result - scale * (growth / 2 if midpoint else growth / g - 1) * first
    if order > 2:
        # In sde-dpmsolver++ diffusers (0.42) adds this half where the expansion takes it away; kept, for equal images.
        half = -0.5 if config.algorithm_type == "sde-dpmsolver++" else 0.5
        result = result - scale * ((growth - g) / g**2 - np.float32(half)) * second
    if noise is not None:
        result = result + target.sigma * np.sqrt(-growth if data else schedules.expm1(2 * h)) * noise
    return result


def _differences(levels: Sequence[Level], predicted: Sequence[Array], order: int) -> tuple[Array, Array]:
    """First and second divided difference of the predictions, in units of the coming step; order 2 knows no second."""
    h, *ratios = (newer.log_snr - older.log_snr for newer, older in pairwise(levels))
    r0 = ratios[0] / h
    newer = (predicted[0] - predicted[1]) / r0
    if order == 2:
        return newer, np.zeros_like(newer)
    r1 = ratios[1] / h
    change = (newer - (predicted[1] - predicted[2]) / r1) / (r0 + r1)
    return newer + r0 * change, change
