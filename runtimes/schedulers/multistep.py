"""What the solvers in lambda = ln(alpha / sigma) share: other classes' names for options, refusals, and the flow's levels."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import InputError
from . import flow, schedules
from .parameterization import Array

PREDICTIONS = ("epsilon", "sample", "v_prediction", "flow_prediction")
ALIASES: dict[str, dict[Any, Any]] = {
    "algorithm_type": {"deis": "dpmsolver++"},  # DEISMultistepScheduler's
    "solver_type": {"logrho": "midpoint", "bh1": "midpoint", "bh2": "midpoint"},  # other classes' solvers
    "lambda_min_clipped": {None: -float("inf")},  # strict JSON writes an infinity as null
}
_RULES = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")


def check_algorithm(config: Any) -> None:
    """Raise InputError where the solver divides by the noise level that a run ends at."""
    if not config.algorithm_type.endswith("++") and config.final_sigmas_type == "zero":
        kind = config.algorithm_type
        raise InputError(f"algorithm_type={kind!r} cannot end at final_sigmas_type='zero'; 'sigma_min' would do")


def check_flow(config: Any, *, data: bool, rules: tuple[str, ...] = _RULES) -> None:
    """Raise InputError for options of flow matching that do not go together.

    `data` says that the solver expands the finished sample; `rules` are the options that lay out levels of their own.
    """
    laid = next((rule for rule in rules if config[rule]), None)
    if config.use_flow_sigmas and laid:
        raise InputError(f"use_flow_sigmas and {laid} exclude each other: each lays out all noise levels")
    if config.prediction_type == "flow_prediction" and not config.use_flow_sigmas:
        raise InputError(
            "prediction_type='flow_prediction' needs use_flow_sigmas=True: other noise levels are no flow's"
        )
    if config.prediction_type == "flow_prediction" and not data:
        raise InputError("prediction_type='flow_prediction' needs a solver of finished samples, not one of noise")


def check_unlaid(config: Any, name: str, others: tuple[str, ...] = ()) -> None:
    """Raise InputError where custom `name` meet an option that lays out all noise levels."""
    if any(config[rule] for rule in (*_RULES, *others, "use_flow_sigmas")):
        raise InputError(
            f"{name} cannot be given where the config lays out the sigmas (Karras, Lu, exponential, beta, flow); "
            "give num_inference_steps"
        )


def flow_levels(config: Any, steps: int, mu: float | None) -> tuple[Array, Array]:
    """Timesteps and noise levels of a run on a flow, shifted by the config's `flow_shift` or by `mu`."""
    sigmas = flow.solver_sigmas(steps, config.num_train_timesteps, flow.shift_of(config, mu))
    return sigmas * config.num_train_timesteps, sigmas


def ending_low(
    config: Any, bars: schedules.Floats, timesteps: Array, steps: int, mu: float | None = None
) -> tuple[Array, schedules.Floats]:
    """Timesteps and noise levels of a run along `timesteps`, or as an option lays them; its last step never reaches 0.

    It ends at the lowest level of training, or where an option laid the levels, in a step of no length.
    """
    if config.use_flow_sigmas:
        timesteps, sigmas = flow_levels(config, steps, mu)
    else:
        rounded = config.use_karras_sigmas
        timesteps, sigmas = schedules.follow(config, bars, timesteps, steps, ends="training", rounded=rounded)
    laid = config.use_flow_sigmas or any(config[rule] for rule in _RULES)
    final = sigmas[-1] if laid else schedules.sigmas_of(bars[:1])[0]
    return timesteps, np.append(sigmas, final).astype(np.float32)


def mean_of(config: Any, model_output: Array, sample: Array) -> Array:
    """The output without the variance that some models of noise predict beside it, which no step needs."""
    if (config.variance_type or "").startswith("learned") and config.prediction_type == "epsilon":
        return model_output[:, : sample.shape[1]]
    return model_output
