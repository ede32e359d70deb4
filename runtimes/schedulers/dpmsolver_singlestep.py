"""DPM-Solver++ in blocks: x_t = (s_t/s_b) x_b - a_t (e^g - 1) D0 - a_t ((e^g - 1)/g - 1) D1 - a_t (...) D2, from a block's start b.

Every call of a block goes further from the same start, with as many differences of predictions as it has calls so far: Lu,
Zhou, Bao, Chen, Li & Zhu 2022, "DPM-Solver++", algorithm 1 (second order), and "DPM-Solver" (the same authors, 2022),
algorithms 1 and 2. The expansion, with the other kinds, is that of `dpmsolver_multistep`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from . import schedules
from .base import Generators, Step, Timestep
from .discrete import DiscreteScheduler
from .dpmsolver_multistep import expand
from .multistep import ALIASES, PREDICTIONS, check_algorithm, check_flow, check_unlaid, flow_levels, mean_of
from .parameterization import Array, Level, predictions
from .steps import draw, stepped, working


class DPMSolverSinglestepScheduler(DiscreteScheduler):
    """diffusers' `DPMSolverSinglestepScheduler`. A step of a higher order is as many steps of the run."""

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
        "lower_order_final": False,
        "use_karras_sigmas": False,
        "use_exponential_sigmas": False,
        "use_beta_sigmas": False,
        "use_flow_sigmas": False,
        "flow_shift": 1.0,
        "final_sigmas_type": "zero",
        "lambda_min_clipped": -float("inf"),
        "variance_type": None,
        "use_dynamic_shifting": False,
        "time_shift_type": "exponential",
    }
    choices: ClassVar[dict[str, tuple[Any, ...]]] = {
        "solver_order": (1, 2, 3),
        "algorithm_type": ("dpmsolver++", "sde-dpmsolver++", "dpmsolver"),
        "solver_type": ("midpoint", "heun"),
        "prediction_type": PREDICTIONS,
        "time_shift_type": ("exponential",),
    }
    aliases: ClassVar[dict[str, dict[Any, Any]]] = ALIASES

    _predicted: deque[Array]  # what the solver expands, newest last
    _start: Array | None  # the sample at the start of the block

    def step(
        self,
        model_output: Array,
        timestep: Timestep,
        sample: Array,
        *,
        generator: Generators = None,
        eta: float = 0.0,  # noqa: ARG002  # one call for all schedulers
    ) -> Step:
        """From the sample (batch, ...) at a timestep to the next. Noise is drawn by the sde- kind only."""
        config, mean_output = self.config, mean_of(self.config, model_output, sample)
        out, x = working(mean_output, sample)
        at = self._index(timestep)
        data = config.algorithm_type.endswith("++")
        predicted, x0 = predictions(config, out, x, self._level(at), data=data, bounded=config.thresholding)
        noise = draw(mean_output, generator) if config.algorithm_type.startswith("sde-") else None
        self._predicted.append(predicted)
        order = min(orders_of(self._steps, config)[at], len(self._predicted))
        if order == 1 or self._start is None:
            self._start = x
        levels = [self._level(place) for place in range(at + 1, at - order, -1)]
        prev = self._advance(self._start, levels, list(self._predicted)[::-1], noise)
        self._step_index = at + 1
        return stepped(prev, x0, mean_output)

    def _advance(self, x: Array, levels: Sequence[Level], predicted: Sequence[Array], noise: Array | None) -> Array:
        """From `x` at the last of `levels`, the block's start, to the first; `predicted` are of those between, newest first."""
        order, config = len(levels) - 1, self.config
        first, second = _differences(levels, predicted, middle=config.solver_type == "midpoint")
        terms = (predicted[order - 1], first, second)
        halved = order == 2 and config.solver_type == "midpoint"
        return expand(config.algorithm_type, x, levels[0], levels[-1], terms, halved=halved, noise=noise)

    def _check_options(self) -> None:
        check_algorithm(self.config)
        check_flow(self.config, data=self.config.algorithm_type.endswith("++"))

    def _restart(self) -> None:
        super()._restart()
        self._predicted = deque(maxlen=self.config.solver_order)
        self._start = None

    def _schedule(self, steps: int) -> None:
        config, bars = self.config, self.alphas_cumprod
        if config.use_flow_sigmas:
            return self._use(*flow_levels(config, steps, self._mu))
        last = schedules.usable(bars, config.lambda_min_clipped)
        timesteps = schedules.spaced("linspace", steps, config.num_train_timesteps, 0, last=last, extra=1)
        rounded = config.use_karras_sigmas
        return self._use(*schedules.follow(config, bars, timesteps, steps, ends="training", rounded=rounded))

    def _schedule_along(self, name: str, values: NDArray[np.float64]) -> None:
        check_unlaid(self.config, name)
        table, whole = schedules.sigmas_of(self.alphas_cumprod), values.astype(np.int64)
        self._use(whole, np.interp(whole, np.arange(len(table)), table))

    def _use(self, timesteps: Array, sigmas: Array) -> None:
        config, steps = self.config, len(timesteps)
        final = schedules.sigmas_of(self.alphas_cumprod[:1])[0] if config.final_sigmas_type == "sigma_min" else 0
        self.timesteps, self.num_inference_steps = timesteps.astype(np.int64), steps
        self.sigmas = np.append(sigmas, final).astype(np.float32)


def orders_of(steps: int, config: Any) -> list[int]:
    """The order of each step: blocks of 1 to `solver_order`, and a last block that ends in the first order.

    `lower_order_final` false leaves whole blocks to the end, where the steps divide so and the last level is not 0.
    """
    order = int(config.solver_order)
    zero = config.final_sigmas_type == "zero"
    block = list(range(1, order + 1))
    if not (config.lower_order_final or zero or steps % order):
        return block * (steps // order)
    if order < 3:
        return [*(block * steps)[: steps - 1], 1]
    ending = {0: [1, 2, 1], 1: [1], 2: [1, 2]}[steps % 3]
    orders = block * ((steps - len(ending)) // 3) + ending
    return [*orders[:-1], 1] if zero else orders


def _differences(
    levels: Sequence[Level], predicted: Sequence[Array], *, middle: bool
) -> tuple[Array | None, Array | None]:
    """First and second difference of a block's predictions at its start; the `middle` rule takes the longest and no second."""
    if len(levels) == 2:
        return None, None
    target, *places, start = (level.log_snr for level in levels)
    h, base = target - start, predicted[len(places)]
    longest = (predicted[0] - base) / ((places[0] - start) / h)
    if len(places) == 1 or middle:
        return longest, None
    r0, r1 = (places[0] - start) / h, (places[1] - start) / h
    shorter = (predicted[1] - base) / r1
    return (r0 * shorter - r1 * longest) / (r0 - r1), 2 * (longest - shorter) / (r0 - r1)
