"""SA-Solver: x_t = (s_t/s_s) e^(-τ²h) x + (1+τ²) s_t e^(-τ²l_t) sum of b_k x0_k + s_t sqrt(1 - e^(-2τ²h)) z, made twice.

h = l_t - l_s with l = ln(a/s), for x = a x0 + s eps; b_k is the integral of e^((1+τ²)l) times the k-th Lagrange polynomial
of the predictions so far, once to predict and once, with the new prediction among them, to correct; τ is how much noise
the process has, z is fresh noise. Xue, Yi, Luo, Zhang, Sun, Li & Ma 2023, "SA-Solver: Stochastic Adams Solver for Fast
Sampling of Diffusion Models", algorithm 1. For noise predictions: (a_t/a_s) x - (1+τ²) a_t sum of b_k e_k
+ τ s_t sqrt(e^(2h) - 1) z, with e^(-l) in the integral.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np

from ..errors import InputError
from . import schedules
from .base import Generators, Step, Timestep
from .discrete import DiscreteScheduler
from .multistep import ALIASES, PREDICTIONS, check_flow, ending_low, mean_of
from .parameterization import Array, Level, predictions
from .steps import draw, stepped, working

_STOCHASTIC = (200, 800)  # the timesteps between which noise is added where the config names no function


class _Begun(NamedTuple):
    """The last step, for the corrector that makes it again."""

    sample: Array
    noise: Array
    tau: float
    order: int


class SASolverScheduler(DiscreteScheduler):
    """diffusers' `SASolverScheduler`. `tau_func` is a function of the timestep; none stands for 1 from 200 to 800, else 0."""

    space = "preserving"
    noised_by_timestep = True  # as in diffusers
    defaults: ClassVar[dict[str, Any]] = {
        "num_train_timesteps": 1000,
        "beta_start": 0.0001,
        "beta_end": 0.02,
        "beta_schedule": "linear",
        "trained_betas": None,
        "predictor_order": 2,
        "corrector_order": 2,
        "prediction_type": "epsilon",
        "tau_func": None,
        "thresholding": False,
        "dynamic_thresholding_ratio": 0.995,
        "sample_max_value": 1.0,
        "algorithm_type": "data_prediction",
        "lower_order_final": True,
        "use_karras_sigmas": False,
        "use_exponential_sigmas": False,
        "use_beta_sigmas": False,
        "use_flow_sigmas": False,
        "flow_shift": 1.0,
        "lambda_min_clipped": -float("inf"),
        "variance_type": None,
        "timestep_spacing": "linspace",
        "steps_offset": 0,
    }
    choices: ClassVar[dict[str, tuple[Any, ...]]] = {
        "predictor_order": (1, 2, 3, 4),
        "corrector_order": (1, 2, 3, 4),
        "algorithm_type": ("data_prediction", "noise_prediction"),
        "prediction_type": PREDICTIONS,
    }
    aliases: ClassVar[dict[str, dict[Any, Any]]] = {"lambda_min_clipped": ALIASES["lambda_min_clipped"]}

    _predicted: deque[Array]  # what the solver expands, newest first
    _begun: _Begun | None

    def step(
        self,
        model_output: Array,
        timestep: Timestep,
        sample: Array,
        *,
        generator: Generators = None,
        eta: float = 0.0,  # noqa: ARG002  # one call for all schedulers
    ) -> Step:
        """From the sample (batch, ...) at a timestep to the next. Noise is drawn at every step, whether it acts or not."""
        config, mean_output = self.config, mean_of(self.config, model_output, sample)
        out, x = working(mean_output, sample)
        steps, at = self._steps, self._index(timestep)
        now = self._level(at)
        predicted, x0 = predictions(config, out, x, now, data=self._data, bounded=config.thresholding)
        earlier = len(self._predicted)
        self._predicted.appendleft(predicted)
        if at > 0 and self._begun is not None:
            points = [self._level(at - k) for k in range(self._begun.order)]
            x = self._update(self._begun.sample, self._level(at - 1), now, points, self._begun)
        left = steps - at if config.lower_order_final else steps
        tau, noise = self._tau(timestep), draw(mean_output, generator)
        self._begun = _Begun(x, noise, tau, min(config.corrector_order, left + 1, earlier + 2))
        points = [self._level(at - k) for k in range(min(config.predictor_order, left, earlier + 1))]
        prev = self._update(x, now, self._level(at + 1), points, self._begun)
        self._step_index = at + 1
        return stepped(prev, x0, mean_output)

    def _update(self, x: Array, start: Level, target: Level, points: Sequence[Level], begun: _Begun) -> Array:
        """The step from `start` to `target` with the predictions at `points`, newest first."""
        tau2, h = begun.tau**2, float(target.log_snr) - float(start.log_snr)
        lambdas = np.array([point.log_snr for point in points], dtype=np.float64)
        rate = 1 + tau2 if self._data else -1.0
        weights = schedules.lagrange_weights(lambdas, start.log_snr, target.log_snr, rate)
        if self._data and len(points) == 2:
            weights = _half_square(lambdas, float(start.log_snr), h, rate)
        # the weights count from the target's lambda, so that e^(l_t) s_t becomes a_t, and e^(-l_t) a_t becomes s_t
        scale = (1 + tau2) * float(target.alpha if self._data else -target.sigma)
        moved = sum(np.float32(scale * w) * p for w, p in zip(weights, self._predicted, strict=False))
        if self._data:
            kept, spread = np.exp(-tau2 * h) * target.sigma / start.sigma, np.sqrt(-np.expm1(-2 * tau2 * h))
        else:
            kept, spread = target.alpha / start.alpha, begun.tau * np.sqrt(np.expm1(2 * h))
        return np.asarray(np.float32(kept) * x + moved + np.float32(target.sigma * spread) * begun.noise)

    @property
    def _data(self) -> bool:
        return bool(self.config.algorithm_type == "data_prediction")

    def _tau(self, timestep: Timestep) -> float:
        if self.config.tau_func is not None:
            return float(self.config.tau_func(timestep))
        return float(_STOCHASTIC[0] <= timestep <= _STOCHASTIC[1])

    def _check_options(self) -> None:
        check_flow(self.config, data=self._data)
        if self.config.tau_func is not None and not callable(self.config.tau_func):
            raise InputError(f"tau_func={self.config.tau_func!r} is not a function of the timestep")

    def _restart(self) -> None:
        super()._restart()
        self._predicted = deque(maxlen=max(self.config.predictor_order, self.config.corrector_order))
        self._begun = None

    def _schedule(self, steps: int) -> None:
        bars = self.alphas_cumprod
        even = self._spaced(steps, last=schedules.usable(bars, self.config.lambda_min_clipped), extra=1)
        timesteps, self.sigmas = ending_low(self.config, bars, even, steps)
        self.timesteps, self.num_inference_steps = timesteps.astype(np.int64), len(timesteps)


def _half_square(lambdas: Array, start: float, h: float, rate: float) -> Array:
    """Weights of the second order with h²/2 in place of the slope's integral: equal up to h³, as the authors' code has it."""
    level = -np.expm1(-rate * h) / rate
    slope = h**2 / 2 / (lambdas[0] - lambdas[1])
    at_start = (start - lambdas[1]) / (lambdas[0] - lambdas[1])  # how much of the first prediction stands there: 1 or 0
    return np.array([level * at_start + slope, level * (1 - at_start) - slope])
