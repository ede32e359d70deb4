"""DPM-Solver++ on EDM's noise levels: x = x0 + s eps, l = -ln s, and x0 = c_skip x + c_out F(c_in x; ln(s) / 4).

The expansion is that of `dpmsolver_multistep`, with a = 1: Lu, Zhou, Bao, Chen, Li & Zhu 2022, "DPM-Solver++", algorithm 2;
the preconditioning of the network F and the levels: Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based
Generative Models", table 1 and equation 5.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Any, ClassVar

import numpy as np

from ..errors import InputError
from . import schedules
from .base import Generators, Step, Timestep
from .discrete import DiscreteScheduler
from .dpmsolver_multistep import order_of, solve
from .edm_euler import check_range, levels_along
from .multistep import ALIASES
from .parameterization import Array, threshold, to_x0_preconditioned
from .steps import draw, stepped, unit_variance, working


class EDMDPMSolverMultistepScheduler(DiscreteScheduler):
    """diffusers' `EDMDPMSolverMultistepScheduler`."""

    space = "exploding"
    compatibles: ClassVar[tuple[str, ...]] = ()
    defaults: ClassVar[dict[str, Any]] = {
        "sigma_min": 0.002,
        "sigma_max": 80.0,
        "sigma_data": 0.5,
        "sigma_schedule": "karras",
        "num_train_timesteps": 1000,
        "prediction_type": "epsilon",
        "rho": 7.0,
        "solver_order": 2,
        "thresholding": False,
        "dynamic_thresholding_ratio": 0.995,
        "sample_max_value": 1.0,
        "algorithm_type": "dpmsolver++",
        "solver_type": "midpoint",
        "lower_order_final": True,
        "euler_at_final": False,
        "final_sigmas_type": "zero",
    }
    choices: ClassVar[dict[str, tuple[Any, ...]]] = {
        "prediction_type": ("epsilon", "v_prediction"),
        "solver_order": (1, 2, 3),
        "algorithm_type": ("dpmsolver++", "sde-dpmsolver++"),
        "solver_type": ("midpoint", "heun"),
    }
    aliases: ClassVar[dict[str, dict[Any, Any]]] = {name: ALIASES[name] for name in ("algorithm_type", "solver_type")}

    _predicted: deque[Array]  # finished samples, newest last

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
        config = self.config
        out, x = working(model_output, sample)
        steps, at = self._steps, self._index(timestep)
        x0 = to_x0_preconditioned(config.prediction_type, out, x, self.sigmas[at], config.sigma_data)
        if config.thresholding:
            x0 = threshold(x0, config.dynamic_thresholding_ratio, config.sample_max_value)
        noise = draw(model_output, generator) if config.algorithm_type.startswith("sde-") else None
        earlier, self._predicted = len(self._predicted), deque([*self._predicted, x0], config.solver_order)
        levels = [self._level(place) for place in range(at + 1, at - order_of(config, at, steps, earlier), -1)]
        self._step_index = at + 1
        return stepped(solve(config, x, levels, list(self._predicted)[::-1], noise), x0, model_output)

    @property
    def init_noise_sigma(self) -> float:
        """What the first noise is multiplied with."""
        return float(math.hypot(self.config.sigma_max, 1))

    def scale_model_input(self, sample: Array, timestep: Timestep) -> Array:
        """The sample as the model wants to see it: of unit variance."""
        return unit_variance(sample, self._sigma_seen(timestep), self.config.sigma_data)

    def _check_options(self) -> None:
        check_range(self.config)

    def _restart(self) -> None:
        super()._restart()
        self._predicted = deque(maxlen=self.config.solver_order)

    def _trained(self) -> None:
        self._use(self.config.num_train_timesteps, 0)

    def _schedule(self, steps: int) -> None:
        config = self.config
        highest = max(order_of(config, at, steps, at) for at in range(steps))
        if config.algorithm_type == "sde-dpmsolver++" and highest == 3:
            raise InputError("algorithm_type='sde-dpmsolver++' has no third order here; solver_order=2 would do")
        self._use(steps, config.sigma_min if config.final_sigmas_type == "sigma_min" else 0)
        self.num_inference_steps = steps

    def _use(self, steps: int, final: float) -> None:
        levels = levels_along(self.config, schedules.linspace(0, 1, steps)).astype(np.float32)
        self.timesteps = np.float32(0.25) * schedules.log(levels)
        self.sigmas = np.append(levels, np.float32(final))
