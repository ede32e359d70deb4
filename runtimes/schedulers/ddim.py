"""DDIM: x_prev = sqrt(a_prev) x0 + sqrt(1 - a_prev - s²) eps + s z, with s = eta sqrt((1-a_prev)/(1-a)) sqrt(1-a/a_prev).

Song, Meng & Ermon 2021, "Denoising Diffusion Implicit Models", equations 12 and 16; a is alpha-bar, z is fresh noise.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from .base import Generators, Step, Timestep
from .discrete import DiscreteScheduler
from .parameterization import Array, threshold, to_noise, to_x0
from .steps import draw, stepped, working


class DDIMScheduler(DiscreteScheduler):
    """diffusers' `DDIMScheduler`."""

    defaults: ClassVar[dict[str, Any]] = {
        "num_train_timesteps": 1000,
        "beta_start": 0.0001,
        "beta_end": 0.02,
        "beta_schedule": "linear",
        "trained_betas": None,
        "clip_sample": True,
        "set_alpha_to_one": True,
        "steps_offset": 0,
        "prediction_type": "epsilon",
        "thresholding": False,
        "dynamic_thresholding_ratio": 0.995,
        "clip_sample_range": 1.0,
        "sample_max_value": 1.0,
        "timestep_spacing": "leading",
        "rescale_betas_zero_snr": False,
    }

    def step(
        self,
        model_output: Array,
        timestep: Timestep,
        sample: Array,
        *,
        generator: Generators = None,
        eta: float = 0.0,
        use_clipped_model_output: bool = False,
    ) -> Step:
        """From the sample (batch, ...) at a timestep to the next. `eta` from 0, no noise, to 1, as much as DDPM's.

        `use_clipped_model_output` derives the noise again from the clipped finished sample, as GLIDE does.
        """
        out, x = working(model_output, sample)
        bar, bar_prev = self._alpha_bar(int(timestep)), self._alpha_bar(self._previous(int(timestep)))
        alpha, sigma = np.sqrt(bar), np.sqrt(1 - bar)
        x0 = clipped(self.config, to_x0(self.config.prediction_type, out, x, alpha, sigma))
        kind = "sample" if use_clipped_model_output else self.config.prediction_type
        eps = to_noise(kind, x0 if use_clipped_model_output else out, x, alpha, sigma)
        spread = np.float32(eta) * np.sqrt((1 - bar_prev) / (1 - bar) * (1 - bar / bar_prev))
        prev = np.sqrt(bar_prev) * x0 + np.sqrt(1 - bar_prev - spread**2) * eps
        if eta > 0:
            prev = prev + spread * draw(model_output, generator)
        return stepped(prev, x0, model_output)

    def _schedule(self, steps: int) -> None:
        self._use_whole_timesteps(self._spaced(steps))

    def _previous(self, timestep: int) -> int:
        """One even stride back, though the spacings linspace and trailing are not quite even: as diffusers has it."""
        stride: int = self.config.num_train_timesteps // self._steps
        return timestep - stride


def clipped(config: Any, x0: Array) -> Array:
    """The finished sample, kept in its range by the config's thresholding or clipping."""
    if config.thresholding:
        return threshold(x0, config.dynamic_thresholding_ratio, config.sample_max_value)
    if config.clip_sample:
        return np.clip(x0, -config.clip_sample_range, config.clip_sample_range)
    return x0
