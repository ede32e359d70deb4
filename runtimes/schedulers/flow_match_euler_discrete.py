"""Euler's method on a straight flow: x_next = x + (s_next - s) v, with x = (1 - s) x0 + s eps and v = eps - x0.

Liu, Gong & Liu 2022, "Flow Straight and Fast"; Lipman et al. 2023, "Flow Matching for Generative Modeling".
`stochastic_sampling` starts anew from each predicted x0: x_next = (1 - s_next) x0 + s_next z, with fresh noise z.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..noise import randn_tensor
from . import flow, schedules
from .base import Generators, Step, Timestep
from .discrete import DiscreteScheduler
from .parameterization import Array
from .steps import stepped, working


class FlowMatchEulerDiscreteScheduler(DiscreteScheduler):
    """diffusers' `FlowMatchEulerDiscreteScheduler`. `sigmas` are given before the shift, without the last one."""

    space = "flow"
    mu_may_idle = True
    compatibles: ClassVar[tuple[str, ...]] = ()
    custom_schedules: ClassVar[tuple[str, ...]] = ("timesteps", "sigmas")
    defaults: ClassVar[dict[str, Any]] = {
        "num_train_timesteps": 1000,
        "shift": 1.0,
        "use_dynamic_shifting": False,
        "base_shift": 0.5,
        "max_shift": 1.15,
        "base_image_seq_len": 256,
        "max_image_seq_len": 4096,
        "invert_sigmas": False,
        "shift_terminal": None,
        "use_karras_sigmas": False,
        "use_exponential_sigmas": False,
        "use_beta_sigmas": False,
        "time_shift_type": "exponential",
        "stochastic_sampling": False,
    }

    def step(
        self,
        model_output: Array,
        timestep: Timestep,
        sample: Array,
        *,
        generator: Generators = None,
        eta: float = 0.0,  # noqa: ARG002  # one call for all schedulers
    ) -> Step:
        """From the sample (batch, ...) at a timestep to the next. Noise is drawn in float32, if `stochastic_sampling`."""
        out, x = working(model_output, sample)
        at = self._index(timestep)
        sigma, sigma_next = self.sigmas[at], self.sigmas[at + 1]
        # the last sigma is 0, or 1 in a schedule that `invert_sigmas` turned round
        x0 = x + (self.sigmas[-1] - sigma) * out
        if self.config.stochastic_sampling:
            prev = (1 - sigma_next) * x0 + sigma_next * randn_tensor(x.shape, generator)
        else:
            prev = x + (sigma_next - sigma) * out
        self._step_index = at + 1
        return stepped(prev, x0, model_output)

    def scale_noise(self, sample: Array, timestep: Any, noise: Array) -> Array:
        """`add_noise` under the name, and with the order of arguments, that flow matching has in diffusers."""
        return self.add_noise(sample, noise, timestep)

    def _check_options(self) -> None:
        if self.config.stochastic_sampling and self.config.invert_sigmas:
            raise InputError("stochastic_sampling ends in noise with invert_sigmas=True; take one of the two")

    def _trained(self) -> None:
        shift = 1.0 if self.config.use_dynamic_shifting else self.config.shift
        self.sigmas = trained_sigmas(self.config.num_train_timesteps, shift)
        self.timesteps = self.sigmas * self.config.num_train_timesteps
        self._ends = float(self.sigmas[0]), float(self.sigmas[-1])

    def _schedule(self, steps: int) -> None:
        # The ends are shifted already, and all are shifted once more: as diffusers has it. FLUX gives sigmas of its own.
        train = self.config.num_train_timesteps
        self._follow(np.linspace(self._ends[0] * train, self._ends[1] * train, steps) / train)

    def _schedule_along(self, name: str, values: NDArray[np.float64]) -> None:
        given, train = values.astype(np.float32), self.config.num_train_timesteps
        if name == "timesteps":
            # the model sees them as they are, though their noise levels are shifted: as in diffusers
            self._follow(_inside(given / train, name), given)
        else:
            self._follow(_inside(given, name))

    def _follow(self, sigmas: Array, timesteps: Array | None = None) -> None:
        config, steps = self.config, len(sigmas)
        sigmas = flow.moved(config, sigmas, config.shift, self._mu)
        laid = schedules.respaced(config, sigmas, steps)
        levels = (sigmas if laid is None else laid).astype(np.float32)
        if config.invert_sigmas:
            levels, timesteps = 1 - levels, None
        self.timesteps = levels * config.num_train_timesteps if timesteps is None else timesteps
        self.sigmas = np.append(levels, np.float32(1 if config.invert_sigmas else 0))
        self.num_inference_steps = steps


def trained_sigmas(train: int, shift: float) -> NDArray[np.float32]:
    """The noise levels of training, (train,), falling from 1."""
    even: Array = np.linspace(1, train, train, dtype=np.float32)[::-1]
    return flow.shifted(even / train, shift)


def _inside(sigmas: Array, name: str) -> Array:
    if (sigmas > 1).any():
        raise InputError(f"{name} reach to noise level {sigmas.max():g}; a flow's levels end at 1")
    return sigmas
