"""A scheduler's options: read from diffusers' `scheduler_config.json`, checked, and kept for the next scheduler."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError, unknown

FILE_NAME = "scheduler_config.json"
Source = Mapping[str, Any] | str | Path

# What every scheduler understands by these options; a class names its own where it takes more or less.
CHOICES: dict[str, tuple[Any, ...]] = {
    "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2"),
    "prediction_type": ("epsilon", "sample", "v_prediction"),
    "timestep_spacing": ("linspace", "leading", "trailing"),
    "final_sigmas_type": ("zero", "sigma_min"),
    "sigma_schedule": ("karras", "exponential"),
    "time_shift_type": ("exponential", "linear"),
    # of these the learned ones say that a model answers more; the others are DDPM's, and left over in many configs
    "variance_type": (
        None,
        "learned",
        "learned_range",
        "fixed_small",
        "fixed_small_log",
        "fixed_large",
        "fixed_large_log",
    ),
    "solver_p": (None,),
}
_AT_LEAST_ONE = ("num_train_timesteps", "original_inference_steps", "solver_order")
_ABOVE_ZERO = ("flow_shift", "rho", "shift", "sigma_data")
_MAY_BE_NONE = ("base_shift", "max_shift")  # which nothing here reads: a pipeline makes mu from them
_SPACINGS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
# Null in what Euler and UniPC save: nobody said it. Other classes, which read the same options, take their own defaults.
_UNSAID = ("sigma_min", "sigma_max", *_SPACINGS)


class Config(Mapping[str, Any]):
    """Options as a read-only mapping whose values are attributes too.

    As in diffusers it also carries options of other classes, so that nothing is lost when schedulers are exchanged, and
    names under `_use_default_values` the options that nobody gave: the next class takes its own defaults for those.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.__dict__["_values"] = dict(values)

    def __getitem__(self, name: str) -> Any:
        return self.__dict__["_values"][name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.__dict__["_values"])

    def __len__(self) -> int:
        return len(self.__dict__["_values"])

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["_values"][name]
        except KeyError:  # `_values` itself is missing while a copy is being made
            raise AttributeError(name) from None

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a config is read-only; make another scheduler: from_config(config, {name}={value!r})")

    def __repr__(self) -> str:
        return f"Config({self.__dict__['_values']!r})"


def read(source: Source) -> dict[str, Any]:
    """The options in a mapping, in a file, or in a folder's `scheduler_config.json`, without those that nobody gave."""
    if not isinstance(source, Mapping):
        path = Path(source)
        path = path / FILE_NAME if path.is_dir() else path
        try:
            source = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"no scheduler config could be read from {path}: {error}") from error
        if not isinstance(source, Mapping):
            raise InputError(f"{path} does not hold a scheduler config: it is not a JSON object")
    defaulted = set(source.get("_use_default_values", ())) | {"_use_default_values"}
    return {name: value for name, value in source.items() if name not in defaulted}


def resolve(
    owner: str,
    defaults: Mapping[str, Any],
    choices: Mapping[str, tuple[Any, ...]],
    aliases: Mapping[str, Mapping[Any, Any]],
    given: Mapping[str, Any],
) -> Config:
    """Defaults and given options as one checked `Config`. Raises InputError listing every option that does not fit."""
    for name in given:
        if name not in defaults:
            raise unknown(f"option of {owner}", name, defaults)
    given = {name: value for name, value in given.items() if value is not None or name not in _UNSAID}
    values = {name: _translate(aliases.get(name, {}), given.get(name, default)) for name, default in defaults.items()}
    problems = [
        problem for name, value in values.items() if (problem := _problem(name, value, defaults[name], choices))
    ]
    if sum(bool(values.get(name)) for name in _SPACINGS) > 1:
        problems.append(f"only one of {', '.join(_SPACINGS)} can be true")
    trained = values.get("trained_betas")
    if trained is not None and np.shape(trained) != (values["num_train_timesteps"],):
        problems.append(
            f"trained_betas has shape {np.shape(trained)}, not ({values['num_train_timesteps']},), one each"
        )
    if problems:
        raise InputError(f"{owner}: " + "; ".join(problems))
    missing = [name for name in defaults if name not in given]
    return Config(values | {"_class_name": owner} | ({"_use_default_values": missing} if missing else {}))


def _translate(aliases: Mapping[Any, Any], value: Any) -> Any:
    return aliases.get(value, value) if value is None or isinstance(value, str) else value


def _problem(name: str, value: Any, default: Any, choices: Mapping[str, tuple[Any, ...]]) -> str | None:
    allowed = choices.get(name, CHOICES.get(name))
    if allowed is not None:
        fits = any(type(value) is type(option) and value == option for option in allowed)
        return None if fits else f"{name}={value!r} is not supported; {' or '.join(map(repr, allowed))} would do"
    wanted = None if value is None and name in _MAY_BE_NONE else _wanted(default)
    if wanted and not _is(wanted, value):
        return f"{name}={value!r} is not {wanted}"
    if name in _AT_LEAST_ONE and value < 1:
        return f"{name}={value!r} is not at least 1"
    if name in _ABOVE_ZERO and value <= 0:
        return f"{name}={value!r} is not above 0"
    if name == "shift_terminal" and value is not None and not (_is("a number", value) and 0 <= value < 1):
        return f"shift_terminal={value!r} is not a number from 0 to below 1"
    return None


def _wanted(default: Any) -> str | None:
    """What an option takes, by its default; None where anything goes (arrays, optional numbers)."""
    if isinstance(default, bool):
        return "true or false"
    if isinstance(default, Integral):
        return "a whole number"
    if isinstance(default, Real):
        return "a number"
    return "a list of steps" if isinstance(default, Sequence) and not isinstance(default, str) else None


def _is(wanted: str, value: Any) -> bool:
    if wanted == "a list of steps":
        return isinstance(value, Sequence) and all(_is("a whole number", step) for step in value)
    if isinstance(value, bool | np.bool_):
        return wanted == "true or false"
    if wanted == "a whole number":
        return isinstance(value, Integral)
    return wanted == "a number" and isinstance(value, Real) and not math.isnan(value)
