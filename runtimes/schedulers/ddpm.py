"""DDPM: x_prev = (sqrt(a_prev) b x0 + sqrt(1-b) (1-a_prev) x) / (1-a) + sqrt(variance) z, with b = 1 - a/a_prev.

Ho, Jain & Abbeel 2020, "Denoising Diffusion Probabilistic Models", equations 6 and 7; a is alpha-bar, z is fresh noise.
Learned variances: Nichol & Dhariwal 2021, equation 15.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .base import Generators, Step, Timestep
from .ddim import DDIMScheduler, clipped
from .discrete import DiscreteScheduler
from .parameterization import Array, to_x0
from .steps import draw, stepped, working

_LEARNED = ("learned", "learned_range")


class DDPMScheduler(DiscreteScheduler):
    """diffusers' `DDPMScheduler`. With a learned variance the model output has twice the sample's channels."""

    defaults: ClassVar[dict[str, Any]] = {
        name: default for name, default in DDIMScheduler.defaults.items() if name != "set_alpha_to_one"
    } | {"variance_type": "fixed_small"}
    choices: ClassVar[dict[str, tuple[Any, ...]]] = {
        "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "laplace"),
        # not "fixed_large_log": diffusers takes the square root of a negative logarithm there, and samples are NaN
        "variance_type": ("fixed_small", "fixed_small_log", "fixed_large", *_LEARNED),
    }
    aliases: ClassVar[dict[str, dict[Any, Any]]] = {"variance_type": {None: "fixed_small"}}  # what diffusers computes
    custom_schedules: ClassVar[tuple[str, ...]] = ("timesteps",)

    def step(
        self,
        model_output: Array,
        timestep: Timestep,
        sample: Array,
        *,
        generator: Generators = None,
        eta: float = 0.0,  # noqa: ARG002  # one call for all schedulers
    ) -> Step:
        """From the sample (batch, channels, ...) at a timestep to the next."""
        mean_output, learned = split_variance(self.config.variance_type, model_output, sample)
        out, x = working(mean_output, sample)
        bar, bar_prev = self._alpha_bar(int(timestep)), self._alpha_bar(self._previous(timestep))
        alpha = bar / bar_prev
        x0 = clipped(self.config, to_x0(self.config.prediction_type, out, x, np.sqrt(bar), np.sqrt(1 - bar)))
        prev = np.sqrt(bar_prev) * (1 - alpha) / (1 - bar) * x0 + np.sqrt(alpha) * (1 - bar_prev) / (1 - bar) * x
        if timestep > 0:
            prev = prev + self._spread(bar, bar_prev, learned) * draw(mean_output, generator)
        return stepped(prev, x0, model_output)

    def _spread(self, bar: Any, bar_prev: Any, learned: Array | None) -> Any:
        """Standard deviation of the noise of a step from alpha-bar `bar` to `bar_prev`."""
        beta = 1 - bar / bar_prev
        small = np.maximum((1 - bar_prev) / (1 - bar) * beta, np.float32(1e-20))
        if self.config.variance_type == "learned":
            return np.sqrt(learned)  # type: ignore[arg-type]  # an array when the variance is learned
        if self.config.variance_type == "learned_range":
            share = (learned + 1) / 2  # type: ignore[operator]  # an array when the variance is learned
            return np.exp(0.5 * (share * np.log(beta) + (1 - share) * np.log(small)))
        return np.sqrt(beta if self.config.variance_type == "fixed_large" else small)

    def _previous(self, timestep: Timestep) -> int:
        following = self._lookup(timestep) + 1
        return int(self.timesteps[following]) if following < len(self.timesteps) else -1

    def _schedule(self, steps: int) -> None:
        self._use_whole_timesteps(self._spaced(steps))

    def _schedule_along(self, name: str, values: NDArray[np.float64]) -> None:  # noqa: ARG002  # timesteps only
        self._use_whole_timesteps(self._falling(values))


def split_variance(kind: str, model_output: Array, sample: Array) -> tuple[Array, Array | None]:
    """The output proper, and the variance that a model with a learned one (a `variance_type`) predicts beside it."""
    if kind not in _LEARNED:
        return model_output, None
    channels = sample.shape[1]
    if model_output.shape[1] != 2 * channels:
        raise InputError(
            f"variance_type={kind!r} needs a model output of {2 * channels} channels, twice the sample's, "
            f"not {model_output.shape[1]}"
        )
    return model_output[:, :channels], model_output[:, channels:].astype(np.float32)
