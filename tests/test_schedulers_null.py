"""Nulls in scheduler configs as diffusers saves them, and options that another class has left there: what nobody said.

Schedules equal diffusers' as in the other tests of schedulers; a step is within 1e-5 relative, its acceptance.
"""

from __future__ import annotations

import inspect
import json
import typing
from pathlib import Path
from types import NoneType
from typing import Any

import numpy as np
import pytest
import torch

from ingot import InputError
from ingot.runtimes import schedulers
from ingot.runtimes.noise import Generator
from ingot.runtimes.schedulers import from_config

from .scheduler_oracle import SHAPE, oracle_class, same_schedule

STEPS = 6


def may_be_null(name: str) -> list[str]:
    """The options that diffusers' annotations let be None."""
    hints = typing.get_type_hints(oracle_class(name).__init__)
    return [option for option, hint in hints.items() if option != "return" and NoneType in typing.get_args(hint)]


def saved(name: str, folder: Path, **options: Any) -> dict[str, Any]:
    """The file that diffusers writes, where every option stands and none is said to be a default."""
    oracle_class(name)(**options).save_pretrained(folder)
    found: dict[str, Any] = json.loads((folder / "scheduler_config.json").read_text())
    return found


def same_run(ours: Any, theirs: Any, *, stepping: bool = True) -> None:
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(STEPS)
    same_schedule(ours, theirs)
    if not stepping:
        return
    x = np.full(SHAPE, 0.5, np.float32)
    t = theirs.timesteps[0]
    taken = {"generator": torch.Generator().manual_seed(0)}
    known = inspect.signature(theirs.step).parameters
    given = {name: value for name, value in taken.items() if name in known}
    want = theirs.step(torch.from_numpy(x / 2), t, torch.from_numpy(x), **given).prev_sample
    got = ours.step(x / 2, ours.timesteps[0], x, generator=Generator(0)).prev_sample
    np.testing.assert_allclose(got, want.numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", schedulers.SCHEDULERS)
def test_what_diffusers_saves_with_its_defaults_is_read(name: str, tmp_path: Path) -> None:
    config = saved(name, tmp_path)
    assert "_use_default_values" not in config
    same_run(from_config(tmp_path), oracle_class(name).from_config(config), stepping=False)


@pytest.mark.parametrize("name", schedulers.SCHEDULERS)
def test_an_option_that_may_be_null_is_one_that_nobody_said(name: str, tmp_path: Path) -> None:
    """diffusers (0.42) cannot count Euler's `use_karras_sigmas` where it is null, as its annotation lets it be."""
    config = saved(name, tmp_path)
    for option in may_be_null(name):
        ours = from_config({**config, option: None})
        without = {key: value for key, value in config.items() if key != option}
        same_run(ours, oracle_class(name).from_config(without), stepping=False)


@pytest.mark.parametrize(
    "name", ["EDMEulerScheduler", "EDMDPMSolverMultistepScheduler", "CMStochasticIterativeScheduler"]
)
@pytest.mark.parametrize("source", ["EulerDiscreteScheduler", "UniPCMultistepScheduler"])
def test_noise_levels_that_another_class_left_unsaid_are_the_class_own(name: str, source: str, tmp_path: Path) -> None:
    """diffusers (0.42) fails in the arithmetic of None there."""
    config = saved(source, tmp_path)
    assert config["sigma_min"] is None
    ours = getattr(schedulers, name).from_config(config)
    same_run(ours, oracle_class(name)(num_train_timesteps=config["num_train_timesteps"]), stepping=False)
    assert from_config({**ours.config, "_class_name": source}).config.sigma_min is None  # and back


@pytest.mark.parametrize("name", ["DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "SASolverScheduler"])
@pytest.mark.parametrize("kind", ["fixed_small", "fixed_small_log", "fixed_large"])
def test_ddpms_kind_of_variance_is_no_other_samplers_business(name: str, kind: str, tmp_path: Path) -> None:
    config = saved("DDPMScheduler", tmp_path, variance_type=kind)
    same_run(getattr(schedulers, name).from_config(config), oracle_class(name).from_config(config))


def test_ddpm_without_a_kind_of_variance_takes_the_small_one(tmp_path: Path) -> None:
    config = saved("DPMSolverMultistepScheduler", tmp_path)
    assert config["variance_type"] is None
    ours = schedulers.DDPMScheduler.from_config(config)
    same_run(ours, oracle_class("DDPMScheduler").from_config(config))


def test_a_null_that_says_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="beta_start=None is not a number"):
        schedulers.DDIMScheduler(beta_start=None)
