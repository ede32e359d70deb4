"""What a model's output means: from noise, sample or velocity to the finished sample x0 and the noise.

Everything here follows from x = alpha x0 + sigma eps and v = alpha eps - sigma x0 (Salimans & Ho 2022).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .schedules import log

Array = NDArray[Any]
Ratio = np.floating[Any] | Array


def to_x0(kind: str, output: Array, x: Array, alpha: Ratio, sigma: Ratio) -> Array:
    """The finished sample that an output of `kind` (a `prediction_type`) at the noisy `x` predicts."""
    if kind == "epsilon":
        with np.errstate(divide="ignore"):  # alpha is 0 at the first timestep of a zero terminal SNR schedule
            return (x - sigma * output) / alpha
    if kind == "v_prediction":
        return alpha * x - sigma * output
    return output


def to_noise(kind: str, output: Array, x: Array, alpha: Ratio, sigma: Ratio) -> Array:
    """The noise that an output of `kind` at the noisy `x` predicts."""
    if kind == "sample":
        return (x - alpha * output) / sigma
    if kind == "v_prediction":
        return alpha * output + sigma * x
    return output


def to_x0_exploding(kind: str, output: Array, x: Array, sigma: Ratio) -> Array:
    """As `to_x0`, for an `x` that is not scaled down: x = x0 + sigma eps (Karras et al. 2022, table 1)."""
    if kind == "epsilon":
        return x - sigma * output
    if kind == "v_prediction":
        return output * (-sigma / np.sqrt(sigma**2 + 1)) + x / (sigma**2 + 1)
    return output


def alpha_sigma(sigma: Ratio) -> tuple[Any, Any]:
    """alpha and sigma of x = alpha x0 + sigma eps, of unit variance, from the ratio sigma / alpha."""
    alpha = 1 / np.sqrt(sigma**2 + 1)
    return alpha, sigma * alpha


class Level(NamedTuple):
    """A noise level of x = alpha x0 + sigma eps, with lambda, half the logarithm of its signal-to-noise ratio."""

    alpha: Any
    sigma: Any
    log_snr: Any  # lambda = ln(alpha / sigma); infinite where sigma is 0


def level(ratio: np.floating[Any]) -> Level:
    """The level with sigma / alpha = `ratio`."""
    alpha, sigma = alpha_sigma(ratio)
    return Level(alpha, sigma, log(alpha) - log(sigma))


def threshold(x0: Array, ratio: float, most: float) -> Array:
    """Dynamic thresholding of `x0` (batch, ...) by each sample's quantile: Saharia et al. 2022, section 2.3."""
    flat = x0.reshape(len(x0), -1)
    limit = np.minimum(np.maximum(np.quantile(np.abs(flat), ratio, axis=1, keepdims=True), 1), most).astype(x0.dtype)
    bounded: Array = np.clip(flat, -limit, limit) / limit
    return bounded.reshape(x0.shape)


def mix(original: Array, noise: Array, alpha: Array, sigma: Array) -> Array:
    """alpha original + sigma noise, with one alpha and one sigma for each of the batch; in the original's dtype."""
    shape = (-1, *(1,) * (original.ndim - 1))
    mixed: Array = alpha.reshape(shape) * original.astype(np.float32) + sigma.reshape(shape) * noise.astype(np.float32)
    return mixed.astype(original.dtype)
