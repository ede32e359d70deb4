"""What a model's output means: from noise, sample or velocity to the finished sample x0 and the noise.

Everything here follows from x = alpha x0 + sigma eps and v = alpha eps - sigma x0 (Salimans & Ho 2022); a flow's
velocity is eps - x0, with alpha = 1 - sigma (Liu, Gong & Liu 2022, "Flow Straight and Fast").
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .schedules import log

Array = NDArray[Any]
Ratio = np.floating[Any] | Array
Space = Literal["exploding", "preserving", "flow"]


def to_x0(kind: str, output: Array, x: Array, alpha: Ratio, sigma: Ratio) -> Array:
    """The finished sample that an output of `kind` (a `prediction_type`) at the noisy `x` predicts."""
    if kind == "epsilon":
        with np.errstate(divide="ignore"):  # alpha is 0 at the first timestep of a zero terminal SNR schedule
            return (x - sigma * output) / alpha
    if kind == "v_prediction":
        return alpha * x - sigma * output
    if kind == "flow_prediction":
        return x - sigma * output
    return output


def to_noise(kind: str, output: Array, x: Array, alpha: Ratio, sigma: Ratio) -> Array:
    """The noise that an output of `kind` at the noisy `x` predicts."""
    if kind == "sample":
        return (x - alpha * output) / sigma
    if kind == "v_prediction":
        return alpha * output + sigma * x
    if kind == "flow_prediction":
        return x + alpha * output
    return output


def to_x0_exploding(kind: str, output: Array, x: Array, sigma: Ratio) -> Array:
    """As `to_x0`, for an `x` that is not scaled down: x = x0 + sigma eps (Karras et al. 2022, table 1)."""
    if kind == "epsilon":
        return x - sigma * output
    if kind == "v_prediction":
        return output * (-sigma / np.sqrt(sigma**2 + 1)) + x / (sigma**2 + 1)
    return output


def to_x0_preconditioned(kind: str, output: Array, x: Array, sigma: Ratio, sigma_data: float) -> Array:
    """As `to_x0_exploding`, for a network inside a skip connection: c_skip x + c_out F (Karras et al. 2022, table 1)."""
    data = np.float32(sigma_data)
    variance = sigma**2 + data**2
    skip, scale = data**2 / variance, sigma * data / np.sqrt(variance)
    return skip * x + (-scale if kind == "v_prediction" else scale) * output


def alpha_sigma(sigma: Ratio, space: Space = "preserving") -> tuple[Any, Any]:
    """alpha and sigma of x = alpha x0 + sigma eps: of unit variance from the ratio sigma / alpha, or as `space` says."""
    if space == "exploding":
        return np.ones_like(sigma), sigma
    if space == "flow":
        return 1 - sigma, sigma
    alpha = 1 / np.sqrt(sigma**2 + 1)
    return alpha, sigma * alpha


class Level(NamedTuple):
    """A noise level of x = alpha x0 + sigma eps, with lambda, half the logarithm of its signal-to-noise ratio."""

    alpha: Any
    sigma: Any
    log_snr: Any  # lambda = ln(alpha / sigma); infinite where sigma is 0


def level(sigma: np.floating[Any], space: Space = "preserving") -> Level:
    """The level that a scheduler of this space calls `sigma`."""
    alpha, sigma = alpha_sigma(sigma, space)
    return Level(alpha, sigma, log(alpha) - log(sigma))


def predictions(
    config: Any, output: Array, x: Array, now: Level, *, data: bool, bounded: bool = False
) -> tuple[Array, Array]:
    """What a solver expands, the finished sample (`data`) or the noise; and the finished sample.

    `bounded` keeps the finished sample in its range by the config's dynamic thresholding.
    """
    kind = config.prediction_type
    x0 = to_x0(kind, output, x, now.alpha, now.sigma)
    if bounded:
        x0 = output = threshold(x0, config.dynamic_thresholding_ratio, config.sample_max_value)
        kind = "sample"
    return (x0 if data else to_noise(kind, output, x, now.alpha, now.sigma)), x0


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
