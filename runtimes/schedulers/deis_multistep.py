"""DEIS: x_t / a_t = x_s / a_s + sum of C_k e_k, C_k the integral over rho of the k-th Lagrange polynomial in ln rho.

rho = s / a for x = a x0 + s eps, and e_k are the predicted noises of the last steps: Zhang & Chen 2023, "Fast Sampling of
Diffusion Models with Exponential Integrator", the multistep method, with polynomials in ln rho.
"""

from __future__ import annotations

from collections import deque
from typing import Any, ClassVar

import numpy as np

from . import schedules
from .base import Generators, Step, Timestep
from .discrete import DiscreteScheduler
from .multistep import PREDICTIONS, check_flow, ending_low
from .parameterization import Array, predictions, to_noise
from .steps import stepped, working


class DEISMultistepScheduler(DiscreteScheduler):
    """diffusers' `DEISMultistepScheduler`."""

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
        "algorithm_type": "deis",
        "solver_type": "logrho",
        "lower_order_final": True,
        "use_karras_sigmas": False,
        "use_exponential_sigmas": False,
        "use_beta_sigmas": False,
        "use_flow_sigmas": False,
        "flow_shift": 1.0,
        "timestep_spacing": "linspace",
        "steps_offset": 0,
        "use_dynamic_shifting": False,
        "time_shift_type": "exponential",
    }
    choices: ClassVar[dict[str, tuple[Any, ...]]] = {
        "solver_order": (1, 2, 3),
        "algorithm_type": ("deis",),
        "solver_type": ("logrho",),
        "prediction_type": PREDICTIONS,
        "time_shift_type": ("exponential",),
    }
    aliases: ClassVar[dict[str, dict[Any, Any]]] = {  # other classes' algorithms and solvers
        "algorithm_type": {"dpmsolver": "deis", "dpmsolver++": "deis"},
        "solver_type": {"midpoint": "logrho", "heun": "logrho", "bh1": "logrho", "bh2": "logrho"},
    }

    _noises: deque[Array]  # the predicted ones, newest first

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
        now, target = self._level(at), self._level(at + 1)
        _, x0 = predictions(self.config, out, x, now, data=True, bounded=self.config.thresholding)
        order = self._order(at, steps, len(self._noises))
        self._noises.appendleft(to_noise("sample", x0, x, now.alpha, now.sigma))
        # with u = ln rho = -lambda, d rho is exp(u) du
        points = np.array([-self._level(at - k).log_snr for k in range(order)])
        weights = schedules.lagrange_weights(points, -now.log_snr, -target.log_snr, rate=1.0).astype(np.float32)
        moved = sum(weight * noise for weight, noise in zip(weights, self._noises, strict=False))
        # the weights count from rho of the target, which times its alpha is its sigma
        prev = target.alpha / now.alpha * x + target.sigma * moved
        self._step_index = at + 1
        return stepped(prev, x0, model_output)

    def _order(self, at: int, steps: int, earlier: int) -> int:
        """The order of a step: as many as there are predictions, fewer at the end of a short run."""
        most = min(int(self.config.solver_order), earlier + 1)
        return min(most, steps - at) if self.config.lower_order_final and steps < 15 else most

    def _check_options(self) -> None:
        check_flow(self.config, data=True)

    def _restart(self) -> None:
        super()._restart()
        self._noises = deque(maxlen=self.config.solver_order)

    def _schedule(self, steps: int) -> None:
        even = self._spaced(steps, extra=1)
        timesteps, self.sigmas = ending_low(self.config, self.alphas_cumprod, even, steps, self._mu)
        self.timesteps, self.num_inference_steps = timesteps.astype(np.int64), len(timesteps)
