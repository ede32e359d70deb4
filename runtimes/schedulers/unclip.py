"""DDPM as unCLIP has it: x_prev = (sqrt(a_prev) b x0 + sqrt(1-b) (1-a_prev) x) / (1-a) + sqrt(variance) z, b = 1 - a/a_prev.

Ho, Jain & Abbeel 2020, "Denoising Diffusion Probabilistic Models", equations 6 and 7, along timesteps that always include
the first and the last of training: Ramesh, Dhariwal, Nichol, Chu & Chen 2022, "Hierarchical Text-Conditional Image Generation
with CLIP Latents". a is alpha-bar, z is fresh noise. Kandinsky's prior uses it.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from ..errors import InputError
from .base import Generators, Step, Timestep
from .ddpm import split_variance
from .discrete import DiscreteScheduler
from .parameterization import Array, to_x0
from .steps import draw, stepped, working


class UnCLIPScheduler(DiscreteScheduler):
    """diffusers' `UnCLIPScheduler`, which takes the timestep after each step from its pipeline; here it is the run's."""

    compatibles: ClassVar[tuple[str, ...]] = ()
    defaults: ClassVar[dict[str, Any]] = {
        "num_train_timesteps": 1000,
        "variance_type": "fixed_small_log",
        "clip_sample": True,
        "clip_sample_range": 1.0,
        "prediction_type": "epsilon",
        "beta_schedule": "squaredcos_cap_v2",
    }
    choices: ClassVar[dict[str, tuple[Any, ...]]] = {
        "variance_type": ("fixed_small_log", "learned_range"),
        "prediction_type": ("epsilon", "sample"),
        "beta_schedule": ("squaredcos_cap_v2",),
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
        """From the sample (batch, channels, ...) at a timestep to the next."""
        config, t = self.config, int(timestep)
        mean_output, learned = split_variance(config.variance_type, model_output, sample)
        out, x = working(mean_output, sample)
        after = self._lookup(timestep) + 1
        t_prev = int(self.timesteps[after]) if after < len(self.timesteps) else t - 1
        bar, bar_prev = self._alpha_bar(t), self._alpha_bar(t_prev)
        beta = self.betas[t] if t_prev == t - 1 else 1 - bar / bar_prev
        x0 = to_x0(config.prediction_type, out, x, np.sqrt(bar), np.sqrt(1 - bar))
        if config.clip_sample:
            x0 = np.clip(x0, -config.clip_sample_range, config.clip_sample_range)
        prev = np.sqrt(bar_prev) * beta / (1 - bar) * x0 + np.sqrt(1 - beta) * (1 - bar_prev) / (1 - bar) * x
        if t > 0:
            small = (1 - bar_prev) / (1 - bar) * beta
            spread = np.sqrt(np.maximum(small, np.float32(1e-20)))
            if learned is not None:
                share = (learned + 1) / 2
                spread = np.exp(0.5 * (share * np.log(beta) + (1 - share) * np.log(small)))
            prev = prev + spread * draw(mean_output, generator)
        return stepped(prev, x0, model_output)

    def _schedule(self, steps: int) -> None:
        if steps < 2:
            raise InputError(
                "UnCLIPScheduler goes from the last timestep of training to the first; take 2 steps or more"
            )
        stride = (self.config.num_train_timesteps - 1) / (steps - 1)
        self._use_whole_timesteps((np.arange(steps) * stride).round()[::-1])
