"""Flow matching's noise levels: x = (1 - s) x0 + s eps with s from 1 to 0, shifted: s' = shift s / (1 + (shift - 1) s).

Liu, Gong & Liu 2022, "Flow Straight and Fast"; the shift, more of the steps at high noise for larger pictures: Esser et al.
2024, "Scaling Rectified Flow Transformers for High-Resolution Image Synthesis", equation 23.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError

Array = NDArray[Any]


def shifted(sigmas: Array, shift: float) -> Array:
    """The levels, moved towards 1 by a shift above 1."""
    return shift * sigmas / (1 + (shift - 1) * sigmas)


def shift_of(config: Any, mu: float | None) -> float:
    """The shift of a run: exp(mu), or mu itself for the "linear" time_shift_type; without `mu` the config's flow_shift."""
    return float(config.flow_shift) if mu is None else _dynamic(config, mu)


def moved(config: Any, sigmas: Array, shift: float, mu: float | None) -> Array:
    """The levels of a run, shifted by the config's `shift` or by `mu`, then stretched to its `shift_terminal`.

    Raises InputError where the config wants a `mu` and there is none; without `use_dynamic_shifting` a `mu` does not act,
    for pipelines always give one.
    """
    if not config.use_dynamic_shifting:
        sigmas = shifted(sigmas, shift)
    elif mu is None:
        raise InputError(
            "use_dynamic_shifting needs mu, which comes from the picture's size: set_timesteps(..., mu=...)"
        )
    else:  # `shifted` in another form, for equal rounding with diffusers
        odds = _dynamic(config, mu)
        with np.errstate(divide="ignore"):  # of a level 0, which stays 0
            sigmas = odds / (odds + (1 / sigmas - 1))
    return stretched(sigmas, config.shift_terminal) if config.shift_terminal else sigmas


def stretched(sigmas: Array, terminal: float) -> Array:
    """The levels, stretched from 1 downwards so that the last is `terminal`: as LTX-Video has it."""
    if sigmas[-1] >= 1:
        raise InputError(
            f"shift_terminal={terminal} cannot be reached in a run whose last noise level is 1; take more steps"
        )
    moved: Array = 1 - (1 - sigmas) / ((1 - sigmas[-1]) / (1 - terminal))
    return moved


def solver_sigmas(steps: int, train: int, shift: float) -> NDArray[np.float64]:
    """The levels at which DPM-Solver's kin call a flow model, (steps,), without the last: from (train - 1) / train down."""
    falling: NDArray[np.float64] = shifted(1 - np.linspace(1, 1 / train, steps + 1), shift)[::-1][:-1]
    return falling


def _dynamic(config: Any, mu: float) -> float:
    if isinstance(mu, bool) or not isinstance(mu, float | int | np.number) or not math.isfinite(mu):
        raise InputError(f"mu must be a number, not {mu!r}")
    if config.time_shift_type == "exponential":
        return math.exp(mu)
    if mu <= 0:
        raise InputError(f"mu={mu!r} must be above 0 where time_shift_type is 'linear'")
    return float(mu)
