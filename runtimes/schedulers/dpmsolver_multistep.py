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
from .discrete import DiscreteScheduler
from .multistep import ALIASES, PREDICTIONS, check_algorithm, check_flow, check_unlaid, flow_levels, mean_of
from .parameterization import Array, Level, predictions
from .steps import stepped, working


class DPMSolverMultistepScheduler(DiscreteScheduler):
    """diffusers' `DPMSolverMultistepScheduler`."""

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
        "prediction_type": PREDICTIONS,
        "time_shift_type": ("exponential",),
    }
    aliases: ClassVar[dict[str, dict[Any, Any]]] = ALIASES

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
        config = self.config
        mean_output = mean_of(config, model_output, sample)
        out, x = working(mean_output, sample)
        steps, at = self._steps, self._index(timestep)
        data = config.algorithm_type.endswith("++")
        predicted, x0 = predictions(config, out, x, self._level(at), data=data, bounded=config.thresholding)
        noise = randn_tensor(x.shape, generator) if config.algorithm_type.startswith("sde-") else None
        earlier, self._predicted = len(self._predicted), deque([*self._predicted, predicted], config.solver_order)
        levels = [self._level(place) for place in range(at + 1, at - order_of(config, at, steps, earlier), -1)]
        prev = solve(config, x, levels, list(self._predicted)[::-1], noise)
        self._step_index = at + 1
        return stepped(prev, x0, mean_output)

    def _check_options(self) -> None:
        config = self.config
        check_algorithm(config)
        check_flow(config, data=config.algorithm_type.endswith("++"))
        if config.use_flow_sigmas and config.use_lu_lambdas:
            raise InputError("use_flow_sigmas and use_lu_lambdas exclude each other: each lays out all noise levels")

    def _restart(self) -> None:
        super()._restart()
        self._predicted = deque(maxlen=self.config.solver_order)

    def _schedule(self, steps: int) -> None:
        config, bars = self.config, self.alphas_cumprod
        if config.use_flow_sigmas:
            return self._use(*flow_levels(config, steps, self._mu))
        timesteps: Array = self._spaced(steps, last=schedules.usable(bars, config.lambda_min_clipped), extra=1)
        rounded = config.use_karras_sigmas and config.beta_schedule != "squaredcos_cap_v2"
        if not config.use_lu_lambdas or config.use_karras_sigmas:
            return self._use(*schedules.follow(config, bars, timesteps, steps, ends="training", rounded=rounded))
        logs = np.log(schedules.sigmas_of(bars))
        low, high = logs[[0, -1]].astype(np.float64)
        sigmas = np.exp(high + np.linspace(0, 1, steps) * (low - high))
        timesteps = schedules.timesteps_of(sigmas, logs)
        return self._use(timesteps if config.beta_schedule == "squaredcos_cap_v2" else timesteps.round(), sigmas)

    def _schedule_along(self, name: str, values: NDArray[np.float64]) -> None:
        check_unlaid(self.config, name, ("use_lu_lambdas",))
        table, whole = schedules.sigmas_of(self.alphas_cumprod), values.astype(np.int64)
        self._use(whole, np.interp(whole, np.arange(len(table)), table))

    def _use(self, timesteps: Array, sigmas: Array) -> None:
        config, steps = self.config, len(timesteps)
        highest = max(order_of(config, at, steps, at) for at in range(steps))
        if config.algorithm_type == "sde-dpmsolver" and highest == 3:
            raise InputError(
                "algorithm_type='sde-dpmsolver' has no third order; solver_order=2 or 'sde-dpmsolver++' would do"
            )
        final = schedules.sigmas_of(self.alphas_cumprod[:1])[0] if config.final_sigmas_type == "sigma_min" else 0
        self.timesteps, self.num_inference_steps = timesteps.astype(np.int64), steps
        self.sigmas = np.append(sigmas, final).astype(np.float32)


def order_of(config: Any, at: int, steps: int, earlier: int) -> int:
    """The order of step `at`: as many as there are predictions, fewer at the end of a run."""
    short = config.lower_order_final and steps < 15
    if at == steps - 1 and (config.euler_at_final or short or config.final_sigmas_type == "zero"):
        return 1
    return min(int(config.solver_order), earlier + 1, 2 if at == steps - 2 and short else 3)


def solve(config: Any, x: Array, levels: Sequence[Level], predicted: Sequence[Array], noise: Array | None) -> Array:
    """One step from `levels[1]` to `levels[0]`; the levels after those are of the steps before, as many as the order has.

    `predicted` are finished samples, or noises, newest first; `noise` is fresh, for the stochastic kinds.
    """
    target, now = levels[:2]
    # a last step of no length (Karras sigmas down to sigma_min) has no differences
    order = len(levels) - 1 if target.log_snr != now.log_snr else 1
    first, second = _differences(levels, predicted, order) if order > 1 else (None, None)
    halved = order == 2 and config.solver_type == "midpoint"
    return expand(config.algorithm_type, x, target, now, (predicted[0], first, second), halved=halved, noise=noise)


def expand(
    kind: str,
    x: Array,
    target: Level,
    now: Level,
    terms: tuple[Array, Array | None, Array | None],
    *,
    halved: bool = False,
    noise: Array | None = None,
) -> Array:
    """The expansion of a step from `now` to `target`; `kind` is the config's algorithm_type.

    `terms` are D0, D1 and D2, as many as the order has; `halved` is the midpoint rule's factor of D1.
    """
    h = target.log_snr - now.log_snr
    data, doubled = kind.endswith("++"), kind == "sde-dpmsolver"
    g = {"dpmsolver++": -h, "sde-dpmsolver++": -2 * h}.get(kind, h)
    growth = schedules.expm1(g)
    scale = target.alpha if data else target.sigma * np.float32(2 if doubled else 1)
    kept = target.sigma / now.sigma if data else target.alpha / now.alpha
    if kind == "sde-dpmsolver++":
        kept = kept * (schedules.expm1(-h) + 1)
    newest, first, second = terms
    result: Array = kept * x - scale * growth * newest
    if first is not None:
        result = result - scale * (growth / 2 if halved else growth / g - 1) * first
    if second is not None:
        # In sde-dpmsolver++ diffusers (0.42) adds this half where the expansion takes it away; kept, for equal images.
        half = -0.5 if kind == "sde-dpmsolver++" else 0.5
        result = result - scale * ((growth - g) / g**2 - np.float32(half)) * second
    if noise is not None:
        result = result + target.sigma * np.sqrt(-growth if data else schedules.expm1(2 * h)) * noise
    return result


def _differences(levels: Sequence[Level], predicted: Sequence[Array], order: int) -> tuple[Array, Array | None]:
    """First and second divided difference of the predictions, in units of the coming step; order 2 knows no second."""
    h, *ratios = (newer.log_snr - older.log_snr for newer, older in pairwise(levels))
    r0 = ratios[0] / h
    newer = (predicted[0] - predicted[1]) / r0
    if order == 2:
        return newer, None
    r1 = ratios[1] / h
    change = (newer - (predicted[1] - predicted[2]) / r1) / (r0 + r1)
    return newer + r0 * change, change
