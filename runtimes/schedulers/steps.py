"""What the steps of all schedulers share: the type they compute in, what they return, and their noise."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import InputError
from ..noise import randn_tensor
from .base import Array, Generators, Step


def working(model_output: Array, sample: Array) -> tuple[Array, Array]:
    """Both in float32, which steps are computed in. Raises InputError when their shapes differ."""
    if model_output.shape != sample.shape:
        raise InputError(f"model output and sample differ in shape: {model_output.shape} and {sample.shape}")
    return model_output.astype(np.float32), sample.astype(np.float32)


def stepped(prev_sample: Array, denoised: Array, model_output: Array) -> Step:
    """A step's result in the model output's dtype."""
    return Step(prev_sample.astype(model_output.dtype), denoised.astype(model_output.dtype))


def draw(like: Array, generator: Generators) -> Array:
    """Noise for a model output, drawn in its dtype as diffusers does, in float32."""
    return randn_tensor(like.shape, generator, like.dtype).astype(np.float32)


def churned(
    x: Array, sigma: Any, gamma: float, s_noise: float, like: Array, generator: Generators
) -> tuple[Array, Any]:
    """A sample with the noise that raises its level to sigma (1 + gamma), and that level: Karras et al. 2022, algorithm 2."""
    raised = sigma * np.float32(gamma + 1)
    if gamma > 0:
        x = x + np.float32(s_noise) * draw(like, generator) * np.sqrt(raised**2 - sigma**2)
    return x, raised


def unit_variance(sample: Array, sigma: Any, sigma_data: float = 1.0) -> Array:
    """A sample x0 + sigma eps, divided by its deviation, where that of x0 is `sigma_data`; in the sample's dtype."""
    return np.asarray(sample.astype(np.float32) / np.sqrt(sigma**2 + np.float32(sigma_data**2))).astype(sample.dtype)
