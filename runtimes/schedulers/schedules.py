"""Noise schedules as pure functions: betas, their products, sigmas, and which timesteps a run takes.

To the bit where torch can be matched to the bit (`linspace`, `cumprod`), because a schedule computed all in float64
differs by up to 1.3e-5 relative in sigma. Square roots differ from torch's by one unit in the last place in some entries,
and in which entries depends on the processor.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .config import Config

Array = NDArray[Any]
Floats = NDArray[np.float32]

LAST_ALPHA_BAR = 2.0**-24
"""Stands for the zero of a zero terminal SNR schedule where sigma must stay finite: float16's smallest number."""


def linspace(start: float, end: float, count: int) -> Floats:
    """`torch.linspace` in float32: from both ends towards the middle, each value rounded once."""
    first, last = np.float32(start), np.float32(end)
    if count == 1:
        return np.array([first])
    step = np.float64((last - first) / np.float32(count - 1))
    i = np.arange(count)
    values = np.where(i < count // 2, np.float64(first) + step * i, np.float64(last) - step * (count - 1 - i))
    return values.astype(np.float32)


def cumprod(values: Floats) -> Floats:
    """`torch.cumprod` in float32: products kept in float64, each rounded once."""
    return np.cumprod(values, dtype=np.float64).astype(np.float32)


def log(values: Array | np.floating[Any]) -> Any:
    """`torch.log` of float32: equal to the float64 logarithm rounded, where NumPy's float32 one is off in 12 %."""
    with np.errstate(divide="ignore"):  # a last sigma of zero has a logarithm of -inf, which is meant
        return np.log(np.float64(values)).astype(np.float32)


def expm1(values: np.floating[Any]) -> Any:
    """`torch.exp(x) - 1` or `torch.expm1(x)` of float32, within a unit in the last place of the second."""
    return np.expm1(np.float64(values)).astype(np.float32)


def betas(config: Config) -> Floats:
    """The variances of the forward process, (num_train_timesteps,), as a config describes them."""
    count = config.num_train_timesteps
    if config.get("trained_betas") is not None:
        return np.asarray(config.trained_betas, dtype=np.float32)
    if config.beta_schedule in _ALPHA_BARS:
        return _betas_for(_ALPHA_BARS[config.beta_schedule], count)
    start, end = config.beta_start, config.beta_end
    if config.beta_schedule == "scaled_linear":
        roots = linspace(start**0.5, end**0.5, count)
        return roots * roots
    if config.beta_schedule == "sigmoid":  # GeoDiff (Xu et al. 2022)
        sigmoid = (1 / (1 + np.exp(-linspace(-6, 6, count).astype(np.float64)))).astype(np.float32)
        return sigmoid * np.float32(end - start) + np.float32(start)
    return linspace(start, end, count)


def _cosine(t: float) -> float:
    return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2


def _laplace(t: float) -> float:
    snr = math.exp(-0.5 * math.copysign(1, 0.5 - t) * math.log(1 - 2 * abs(0.5 - t) + 1e-6))
    return math.sqrt(snr / (1 + snr))


def _exponential(t: float) -> float:
    return math.exp(-12 * t)


# alpha-bar as a function of time in 0..1: Nichol & Dhariwal 2021; Hang et al. 2024; of the third no paper is named
_ALPHA_BARS: dict[str, Callable[[float], float]] = {
    "squaredcos_cap_v2": _cosine,
    "laplace": _laplace,
    "exp": _exponential,
}


def _betas_for(alpha_bar: Callable[[float], float], count: int, most: float = 0.999) -> Floats:
    bars = [alpha_bar(i / count) for i in range(count + 1)]
    return np.array([min(1 - after / before, most) for before, after in pairwise(bars)], np.float32)


def zero_terminal_snr(values: Floats) -> Floats:
    """Betas shifted and scaled so that the last step is pure noise: Lin et al. 2023, algorithm 1."""
    roots = np.sqrt(cumprod(1 - values))
    roots = (roots - roots[-1]) * (roots[0] / (roots[0] - roots[-1]))
    bars = roots * roots
    rescaled: Floats = 1 - np.concatenate([bars[:1], bars[1:] / bars[:-1]])
    return rescaled


def sigmas_of(alphas_cumprod: Floats) -> Floats:
    """Noise levels sqrt((1 - alpha-bar) / alpha-bar) of the training timesteps, rising."""
    sigmas: Floats = np.sqrt((1 - alphas_cumprod) / alphas_cumprod)
    return sigmas


def spaced(
    spacing: str, steps: int, train: int, offset: int, *, last: int | None = None, extra: int = 0, whole: bool = True
) -> Array:
    """Timesteps of a run, falling: table 2 of Lin et al. 2023.

    `last` is how many training timesteps are in use, `extra` how many further points are laid out and then left away at
    the quiet end; `whole` rounds the points of `linspace`.
    """
    last = train if last is None else last
    if spacing == "trailing":
        return np.arange(last, 0, -train / steps).round() - 1
    if spacing == "leading":
        return (np.arange(steps + extra) * (last // (steps + extra)))[::-1][:steps] + float(offset)
    points = np.linspace(0, last - 1, steps + extra)
    return (points.round() if whole else points)[::-1][:steps]


def karras(high: float, low: float, count: int, rho: float = 7.0) -> NDArray[np.float64]:
    """Noise levels from high to low, even in their `rho`-th root: Karras et al. 2022, equation 5."""
    ramp: NDArray[np.float64] = np.linspace(0, 1, count)
    levels: NDArray[np.float64] = (high ** (1 / rho) + ramp * (low ** (1 / rho) - high ** (1 / rho))) ** rho
    return levels


def exponential(high: float, low: float, count: int) -> NDArray[np.float64]:
    """Noise levels from high to low, even in their logarithm."""
    return np.exp(np.linspace(math.log(high), math.log(low), count))


def beta_spaced(high: float, low: float, count: int, shape: float = 0.6) -> NDArray[np.float64]:
    """Noise levels at the quantiles of Beta(0.6, 0.6): Lee et al. 2024, "Beta Sampling is All You Need"."""
    return low + beta_quantile(1 - np.linspace(0, 1, count), shape) * (high - low)


def beta_quantile(probability: Array, shape: float) -> NDArray[np.float64]:
    """`scipy.stats.beta.ppf(probability, shape, shape)`, within 1e-12: the symmetric beta distribution's quantiles."""
    rare = np.minimum(
        probability, 1 - probability
    )  # by symmetry only the lower half is searched, where the series is quick
    low, high = np.zeros_like(rare), np.full_like(rare, 0.5)
    for _ in range(60):
        middle = (low + high) / 2
        below = _incomplete_beta(middle, shape) < rare
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    quantile = np.where(rare <= 0, 0.0, (low + high) / 2)
    return np.where(probability > 0.5, 1 - quantile, quantile)


def _incomplete_beta(x: Array, shape: float) -> Array:
    """The regularised incomplete beta function I_x(a, a) for x in 0..1/2, by its power series (DLMF 8.17.7)."""
    factor, total = np.ones_like(x), np.zeros_like(x)
    for n in range(60):  # x**60 < 1e-18
        total = total + factor / (shape + n)
        factor = factor * x * (n + 1 - shape) / (n + 1)
    return total * x**shape * math.gamma(2 * shape) / math.gamma(shape) ** 2


def timesteps_of(sigmas: Array, log_sigmas: Floats) -> Array:
    """The timesteps, between training timesteps too, whose noise levels are `sigmas`: linear in log sigma."""
    wanted = np.log(np.maximum(sigmas, 1e-10))
    below = np.clip(np.searchsorted(log_sigmas, wanted, side="right") - 1, 0, len(log_sigmas) - 2)
    low, high = log_sigmas[below], log_sigmas[below + 1]
    weight = np.clip((low - wanted) / (low - high), 0, 1)
    return (1 - weight) * below + weight * (below + 1)


def respaced(config: Config, sigmas: Array, steps: int) -> NDArray[np.float64] | None:
    """The noise levels that a config's Karras, exponential or beta option lays between a run's first and last sigma.

    None when no such option is set. `sigma_min` and `sigma_max` of the config, where given, replace the two ends.
    """
    high, low = config.get("sigma_max"), config.get("sigma_min")
    high = float(sigmas[0]) if high is None else high
    low = float(sigmas[-1]) if low is None else low
    if config.use_karras_sigmas:
        return karras(high, low, steps)
    if config.use_exponential_sigmas:
        return exponential(high, low, steps)
    return beta_spaced(high, low, steps) if config.use_beta_sigmas else None


def follow(
    config: Config,
    bars: Floats,
    timesteps: Array,
    steps: int,
    *,
    ends: Literal["run", "training"],
    rounded: bool = False,
) -> tuple[Array, Array]:
    """Timesteps and noise levels of a run along `timesteps`, or of the levels that the config's rule lays instead.

    A rule lays them between the `ends` of this run or of all training; `rounded` takes whole timesteps for such levels.
    """
    table = sigmas_of(bars)
    sigmas = np.interp(timesteps, np.arange(len(table)), table)
    laid = respaced(config, sigmas if ends == "run" else table[::-1], steps)
    if laid is None:
        return timesteps, sigmas
    places = timesteps_of(laid, np.log(table))
    return (places.round() if rounded else places), laid


def usable(bars: Floats, least: float) -> int:
    """How many training timesteps have a lambda of at least `least`: the cosine schedule's last have next to no signal."""
    log_snr = log(np.sqrt(bars)) - log(np.sqrt(1 - bars))
    count = len(bars) - int(np.searchsorted(log_snr[::-1], least))
    if count < 1:
        raise InputError(f"lambda_min_clipped={least} leaves no timestep")
    return count


def twice(values: Array) -> Array:
    """All but the first repeated, for schedulers that call the model at both ends of a step."""
    return np.concatenate([values[:1], np.repeat(values[1:], 2)])


def lagrange_weights(points: Array, start: Any, end: Any, rate: float = 0.0) -> NDArray[np.float64]:
    """The integral of exp(rate (u - end)) l(u) from `start` to `end` for each Lagrange polynomial l of `points`.

    Gauss and Legendre's quadrature on 16 nodes: exact for the polynomials, and to double precision with the factor.
    """
    points, start, end = points.astype(np.float64), np.float64(start), np.float64(end)
    nodes, shares = np.polynomial.legendre.leggauss(16)
    u = (end + start) / 2 + (end - start) / 2 * nodes
    shares = shares * (end - start) / 2 * np.exp(rate * (u - end))
    others = [np.delete(points, k) for k in range(len(points))]
    bases = [np.prod((u[:, None] - rest) / (point - rest), axis=1) for point, rest in zip(points, others, strict=True)]
    weights: NDArray[np.float64] = np.array(bases) @ shares
    return weights


def check_steps(steps: Any, most: int, name: str = "num_inference_steps") -> int:
    """A number of steps from 1 to `most`. Raises InputError otherwise."""
    if isinstance(steps, bool) or not isinstance(steps, int | np.integer) or not 1 <= steps <= most:
        raise InputError(f"{name} must be a whole number from 1 to {most}, not {steps!r}")
    return int(steps)
