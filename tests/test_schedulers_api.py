"""Configs, the registry, and refusals: what a caller meets before any number is computed."""

from __future__ import annotations

import copy
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from ingot.runtimes import schedulers
from ingot.runtimes.errors import InputError
from ingot.runtimes.noise import Generator
from ingot.runtimes.schedulers import Scheduler, from_config

from .scheduler_oracle import (
    SHAPE,
    STABLE_DIFFUSION,
    fitting,
    oracle_class,
    pair,
    same_timesteps,
    scipy_or_stand_in,
)

__all__ = ["scipy_or_stand_in"]  # a fixture of this file too

# unCLIP's takes no other class's betas
EXCHANGED = [name for name in schedulers.SCHEDULERS if name != "UnCLIPScheduler"]
# diffusers takes long to make a KDPM2, so that these are exchanged with two others only
PAIRS = [
    (source, target)
    for source in EXCHANGED
    for target in EXCHANGED
    if not (source + target).count("KDPM2") or {source, target} & {"DDIMScheduler", "EulerDiscreteScheduler"}
]
# runwayml/stable-diffusion-v1-5's file: no timestep_spacing, so that each class takes its own default
SD15 = {
    "_class_name": "PNDMScheduler", "_diffusers_version": "0.6.0", "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "beta_start": 0.00085, "num_train_timesteps": 1000, "set_alpha_to_one": False, "skip_prk_steps": True,
    "steps_offset": 1, "trained_betas": None, "clip_sample": False,
}  # fmt: skip


@pytest.mark.parametrize("name", schedulers.SCHEDULERS)
def test_defaults_are_those_of_diffusers(name: str) -> None:
    ours, theirs = pair(name)
    wanted = {key: value for key, value in theirs.config.items() if not key.startswith("_")}
    assert {key: value for key, value in ours.config.items() if not key.startswith("_")} == wanted
    assert sorted(ours.config["_use_default_values"]) == sorted(theirs.config["_use_default_values"])


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_schedulers_are_exchanged_through_their_configs_as_in_diffusers(source: str, target: str) -> None:
    options = fitting(source, {**STABLE_DIFFUSION, "prediction_type": "v_prediction"})
    ours, theirs = pair(source, **options)
    ours = getattr(schedulers, target).from_config(ours.config)
    theirs = oracle_class(target).from_config(theirs.config)
    assert {key: value for key, value in ours.config.items() if not key.startswith("_")} == {
        key: value for key, value in theirs.config.items() if not key.startswith("_")
    }
    # and back, with the first class's own options still there
    again = getattr(schedulers, source).from_config(ours.config)
    assert {key: again.config[key] for key in options} == options
    assert again.config["_class_name"] == source


@pytest.mark.parametrize("target", EXCHANGED)
def test_a_published_config_gives_the_schedule_of_diffusers(target: str) -> None:
    ours = getattr(schedulers, target).from_config(from_config(SD15).config)
    theirs = oracle_class(target).from_config(oracle_class("PNDMScheduler").from_config(SD15).config)
    ours.set_timesteps(20)
    theirs.set_timesteps(20)
    same_timesteps(ours, theirs)


def test_a_config_is_read_from_mapping_file_and_folder(tmp_path: Path) -> None:
    (tmp_path / "scheduler_config.json").write_text(json.dumps(SD15))
    for source in (SD15, tmp_path, str(tmp_path), tmp_path / "scheduler_config.json"):
        scheduler = from_config(source)
        assert type(scheduler).__name__ == "PNDMScheduler"
        assert scheduler.config.steps_offset == 1
        assert schedulers.DDIMScheduler.from_config(source, steps_offset=3).config.steps_offset == 3


def test_what_diffusers_saves_is_read_again(tmp_path: Path) -> None:
    for name in schedulers.SCHEDULERS:
        theirs = oracle_class(name)(**fitting(name, STABLE_DIFFUSION))
        theirs.save_pretrained(tmp_path / name)
        ours = from_config(tmp_path / name)
        assert type(ours).__name__ == name
        ours.set_timesteps(5)
        theirs.set_timesteps(5)
        same_timesteps(ours, theirs)


def test_an_infinity_that_json_wrote_as_null_is_read_as_one() -> None:
    assert (
        schedulers.DPMSolverMultistepScheduler.from_config({"lambda_min_clipped": None}).config.lambda_min_clipped
        == -math.inf
    )


def test_a_config_is_a_read_only_mapping_with_attributes_that_copies() -> None:
    config = schedulers.DDIMScheduler(steps_offset=1).config
    assert config["steps_offset"] == config.steps_offset == dict(config)["steps_offset"] == 1
    assert copy.deepcopy(config) == config
    with pytest.raises(AttributeError, match="read-only"):
        config.steps_offset = 2
    with pytest.raises(AttributeError, match="colour"):
        config.colour  # noqa: B018  # reading it is what raises


@pytest.mark.parametrize("name", schedulers.SCHEDULERS)
def test_every_class_keeps_the_protocol_and_copies(name: str) -> None:
    scheduler = getattr(schedulers, name)()
    assert isinstance(scheduler, Scheduler)
    wanted = set(oracle_class(name)._compatibles) & set(schedulers.SCHEDULERS)
    assert set(scheduler.compatibles) == wanted
    scheduler.set_timesteps(6)
    x = np.ones(SHAPE, np.float32)
    twins = [scheduler, copy.deepcopy(scheduler)]
    for t in scheduler.timesteps[:3]:
        steps = [twin.step(twin.scale_model_input(x, t) / 2, t, x, generator=Generator(1), eta=0.5) for twin in twins]
        assert np.array_equal(steps[0].prev_sample, steps[1].prev_sample)
        x = steps[0].prev_sample


def test_an_unknown_scheduler_is_answered_with_those_that_there_are() -> None:
    with pytest.raises(
        InputError, match=r"unknown scheduler 'Heun'; available: CMStochasticIterativeScheduler, DDIMScheduler, DDPM"
    ):
        from_config({"_class_name": "Heun"})
    with pytest.raises(InputError, match="_class_name"):
        from_config({"beta_start": 0.1})
    with pytest.raises(AttributeError, match="HeunScheduler"):
        schedulers.HeunScheduler  # noqa: B018  # reading it is what raises


@pytest.mark.parametrize("content", [None, "[]", "{not json"])
def test_a_file_without_a_config_is_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "scheduler_config.json").write_text(content)
    with pytest.raises(InputError, match="scheduler config"):
        from_config(tmp_path / "scheduler_config.json")


def test_options_that_another_class_left_in_a_config_do_not_act() -> None:
    # of Stable Diffusion 1.5's, `set_alpha_to_one` false is PNDM's: DDPM always ends at alpha-bar 1
    ours = schedulers.DDPMScheduler.from_config(from_config(SD15).config)
    theirs = oracle_class("DDPMScheduler").from_config(oracle_class("PNDMScheduler").from_config(SD15).config)
    x = np.full(SHAPE, 0.5, np.float32)
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(4)
    last = ours.timesteps[-1]
    want = theirs.step(torch.from_numpy(x / 2), last, torch.from_numpy(x), generator=torch.Generator().manual_seed(0))
    got = ours.step(x / 2, last, x, generator=Generator(0))
    np.testing.assert_allclose(got.prev_sample, want.prev_sample.numpy(), rtol=1e-5)  # a step's acceptance
    bare = schedulers.PNDMScheduler.from_config({"clip_sample": True, "skip_prk_steps": True})
    bare.set_timesteps(4)
    assert bare.timesteps[0] == 750


def test_the_name_of_deis_for_its_algorithm_is_understood_by_dpm_solver() -> None:
    # diffusers means it so, but checks the final noise level first, and takes it with "sigma_min" only
    for name in ("DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "EDMDPMSolverMultistepScheduler"):
        assert getattr(schedulers, name)(algorithm_type="deis").config.algorithm_type == "dpmsolver++"
        theirs = oracle_class(name)(algorithm_type="deis", final_sigmas_type="sigma_min")
        assert theirs.config.algorithm_type == "dpmsolver++"


def test_schedulers_are_imported_one_at_a_time_and_without_torch() -> None:
    code = (
        "import sys; from ingot.runtimes.schedulers import from_config; from_config({'_class_name': 'DDIMScheduler'});"
        "print([m for m in sys.modules if m.split('.')[0] in ('torch', 'diffusers', 'scipy') or m.endswith('unipc_multistep')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
