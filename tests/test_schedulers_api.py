"""Configs, the registry, and refusals: what a caller meets before any number is computed."""

from __future__ import annotations

import copy
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ingot.runtimes import schedulers
from ingot.runtimes.errors import InputError
from ingot.runtimes.noise import Generator
from ingot.runtimes.schedulers import Scheduler, from_config

from .test_schedulers import SHAPE, STABLE_DIFFUSION, both_refuse, oracle_class, pair, scipy_or_stand_in

__all__ = ["scipy_or_stand_in"]  # a fixture of this file too

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


@pytest.mark.parametrize("source", schedulers.SCHEDULERS)
@pytest.mark.parametrize("target", schedulers.SCHEDULERS)
def test_schedulers_are_exchanged_through_their_configs_as_in_diffusers(source: str, target: str) -> None:
    options = {**STABLE_DIFFUSION, "prediction_type": "v_prediction"}
    ours, theirs = pair(source, **options)
    ours = getattr(schedulers, target).from_config(ours.config)
    theirs = oracle_class(target).from_config(theirs.config)
    assert {key: value for key, value in ours.config.items() if not key.startswith("_")} == {
        key: value for key, value in theirs.config.items() if not key.startswith("_")
    }
    # and back, with the first class's own options still there
    again = getattr(schedulers, source).from_config(ours.config)
    assert again.config.beta_end == 0.012
    assert again.config["_class_name"] == source


@pytest.mark.parametrize("target", schedulers.SCHEDULERS)
def test_a_published_config_gives_the_schedule_of_diffusers(target: str) -> None:
    ours = getattr(schedulers, target).from_config(from_config(SD15).config)
    theirs = oracle_class(target).from_config(oracle_class("PNDMScheduler").from_config(SD15).config)
    ours.set_timesteps(20)
    theirs.set_timesteps(20)
    assert np.array_equal(ours.timesteps, theirs.timesteps.numpy())


def test_a_config_is_read_from_mapping_file_and_folder(tmp_path: Path) -> None:
    (tmp_path / "scheduler_config.json").write_text(json.dumps(SD15))
    for source in (SD15, tmp_path, str(tmp_path), tmp_path / "scheduler_config.json"):
        scheduler = from_config(source)
        assert type(scheduler).__name__ == "PNDMScheduler"
        assert scheduler.config.steps_offset == 1
        assert schedulers.DDIMScheduler.from_config(source, steps_offset=3).config.steps_offset == 3


def test_what_diffusers_saves_is_read_again(tmp_path: Path) -> None:
    for name in schedulers.SCHEDULERS:
        theirs = oracle_class(name)(**STABLE_DIFFUSION)
        theirs.save_pretrained(tmp_path / name)
        ours = from_config(tmp_path / name)
        assert type(ours).__name__ == name
        ours.set_timesteps(5)
        theirs.set_timesteps(5)
        assert np.array_equal(ours.timesteps, theirs.timesteps.numpy())


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
    assert set(scheduler.compatibles) <= set(schedulers.SCHEDULERS)
    scheduler.set_timesteps(6)
    x = np.ones(SHAPE, np.float32)
    twins = [scheduler, copy.deepcopy(scheduler)]
    for t in scheduler.timesteps[:3]:
        steps = [twin.step(twin.scale_model_input(x, t) / 2, t, x, generator=Generator(1), eta=0.5) for twin in twins]
        assert np.array_equal(steps[0].prev_sample, steps[1].prev_sample)
        x = steps[0].prev_sample


def test_an_unknown_scheduler_is_answered_with_those_that_there_are() -> None:
    with pytest.raises(
        InputError, match=r"unknown scheduler 'Heun'; available: DDIMScheduler, DDPMScheduler, DPMSolver"
    ):
        from_config({"_class_name": "Heun"})
    with pytest.raises(InputError, match="_class_name"):
        from_config({"beta_start": 0.1})
    with pytest.raises(AttributeError, match="HeunDiscreteScheduler"):
        schedulers.HeunDiscreteScheduler  # noqa: B018  # reading it is what raises


@pytest.mark.parametrize("content", [None, "[]", "{not json"])
def test_a_file_without_a_config_is_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "scheduler_config.json").write_text(content)
    with pytest.raises(InputError, match="scheduler config"):
        from_config(tmp_path / "scheduler_config.json")


SIGMA_MIN, ZERO_SNR = {"final_sigmas_type": "sigma_min"}, {"rescale_betas_zero_snr": True}
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("DDIMScheduler", {"prediction_type": "flow"}, r"prediction_type='flow' is not supported; 'epsilon' or 'sample' or 'v_prediction'"),
    ("DDIMScheduler", {"timestep_spacing": "even"}, "timestep_spacing='even'"),
    ("DDIMScheduler", {"beta_schedule": "sigmoid"}, "beta_schedule='sigmoid'"),
    ("DDPMScheduler", {"variance_type": "fixed_large_log"}, "variance_type='fixed_large_log'"),
    ("DPMSolverMultistepScheduler", {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}, "use_flow_sigmas=True.*False"),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver"}, "final_sigmas_type='zero'.*'sigma_min' would do"),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "deis"}, "algorithm_type='deis'"),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver", "solver_order": 3, **SIGMA_MIN}, "third order"),
    ("DPMSolverMultistepScheduler", {"solver_type": "rk4"}, "solver_type='rk4'"),
    ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True, "use_beta_sigmas": True}, "only one of"),
    ("DPMSolverMultistepScheduler", {"final_sigmas_type": "half"}, "final_sigmas_type='half'"),
    ("EulerDiscreteScheduler", {"interpolation_type": "cubic"}, "interpolation_type='cubic'"),
    ("EulerDiscreteScheduler", {"use_exponential_sigmas": True, "use_beta_sigmas": True}, "only one of"),
    ("UniPCMultistepScheduler", {"predict_x0": False}, "predict_x0=False"),
    ("UniPCMultistepScheduler", {"lower_order_final": False}, "lower_order_final=False"),
    ("UniPCMultistepScheduler", {"shift_terminal": 0.1}, "shift_terminal=0.1"),
    ("UniPCMultistepScheduler", {"solver_type": "bh3"}, "solver_type='bh3'"),
    ("LCMScheduler", {"original_inference_steps": 3}, "more than the 3 timesteps"),
    ("DDIMScheduler", {**ZERO_SNR, "timestep_spacing": "trailing", "clip_sample": False}, "rescale_betas.*'leading' would do"),
    ("PNDMScheduler", {"prediction_type": "sample"}, "prediction_type='sample'"),
    ("PNDMScheduler", {"num_train_timesteps": 4, "steps_offset": 1}, "past those of training"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "options", "message"), REFUSED)
def test_what_diffusers_cannot_compute_is_refused_with_the_option_and_what_would_do(
    name: str, options: dict[str, Any], message: str
) -> None:
    steps = 7 if "solver_order" in options else 4  # the third order is reached in longer runs only
    if not options.get("use_flow_sigmas"):  # which diffusers does compute
        assert both_refuse(name, options, steps)
    with pytest.raises(InputError, match=message):
        getattr(schedulers, name)(**options).set_timesteps(steps)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta_strat": 0.1}, "unknown option of DDIMScheduler 'beta_strat'; available: beta_end"),
        ({"num_train_timesteps": 10.5}, "num_train_timesteps=10.5 is not a whole number"),
        ({"num_train_timesteps": 0}, "not at least 1"),
        ({"clip_sample": None}, "clip_sample=None is not true or false"),
        ({"beta_start": "small"}, "beta_start='small' is not a number"),
        ({"trained_betas": [0.1, 0.2]}, "trained_betas has shape"),
        ({"steps_offset": True}, "steps_offset=True is not a whole number"),
    ],
)
def test_a_value_that_is_none_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        schedulers.DDIMScheduler(**options)
    if "beta_strat" not in options:
        with pytest.raises(InputError, match=message):
            schedulers.DDIMScheduler.from_config(options)


def test_every_problem_is_named_at_once_and_an_override_must_be_an_option() -> None:
    with pytest.raises(InputError, match=r"prediction_type='x'.*timestep_spacing='y'"):
        schedulers.EulerDiscreteScheduler.from_config({"prediction_type": "x", "timestep_spacing": "y"})
    with pytest.raises(InputError, match="unknown option of DDIMScheduler 'use_karras_sigmas'"):
        schedulers.DDIMScheduler.from_config({}, use_karras_sigmas=True)


@pytest.mark.parametrize("name", schedulers.SCHEDULERS)
def test_arguments_of_a_run_are_checked(name: str) -> None:
    scheduler = getattr(schedulers, name)()
    for steps in (0, -1, 1001, 2.5, True, "7"):
        with pytest.raises(InputError, match="whole number from 1 to 1000"):
            scheduler.set_timesteps(steps)
    for given in ({}, {"num_inference_steps": 4, "timesteps": [1]}, {"timesteps": [1], "sigmas": [1.0]}):
        with pytest.raises(InputError, match="exactly one of"):
            scheduler.set_timesteps(**given)
    for kind in {"timesteps", "sigmas"} - set(scheduler.custom_schedules):
        with pytest.raises(InputError, match=f"{name} does not take {kind}"):
            scheduler.set_timesteps(**{kind: [3.0, 1.0]})
    for kind in scheduler.custom_schedules:
        for values in ([], [[1.0]], [-1.0], [float("nan")]):
            with pytest.raises(InputError, match=f"{kind} must be a list"):
                scheduler.set_timesteps(**{kind: values})


def test_custom_schedules_that_make_no_run_are_refused() -> None:
    for name in ("DDPMScheduler", "LCMScheduler"):
        for timesteps in ([1, 2], [1000, 1], [5, 5]):
            with pytest.raises(InputError, match="timesteps must fall"):
                getattr(schedulers, name)().set_timesteps(timesteps=timesteps)
    for sigmas in ([1.0], [1.0, 0.0, 0.0]):
        with pytest.raises(InputError, match="sigmas must be two or more"):
            schedulers.EulerDiscreteScheduler().set_timesteps(sigmas=sigmas)
    for name in ("EulerDiscreteScheduler", "DPMSolverMultistepScheduler"):
        for layout in ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"):
            with pytest.raises(InputError, match="give num_inference_steps"):
                getattr(schedulers, name)(**{layout: True}).set_timesteps(timesteps=[900, 1])
    with pytest.raises(InputError, match="strength"):
        schedulers.LCMScheduler().set_timesteps(4, strength=1.5)
    with pytest.raises(InputError, match="leaves none"):
        schedulers.LCMScheduler().set_timesteps(timesteps=[999], strength=0.2)


@pytest.mark.parametrize("name", schedulers.SCHEDULERS)
def test_misuse_of_a_step_is_named(name: str) -> None:
    scheduler, x = getattr(schedulers, name)(), np.ones(SHAPE, np.float32)
    scheduler.set_timesteps(6)
    with pytest.raises(InputError, match="shape"):
        scheduler.step(x[:1], scheduler.timesteps[0], x)
    if hasattr(scheduler, "sigmas"):
        with pytest.raises(InputError, match=r"timestep 0\.123 is not in this run"):
            scheduler.step(x, 0.123, x)
        for t in scheduler.timesteps:
            scheduler.step(x, t, x, generator=Generator(0))
        with pytest.raises(InputError, match="all 6 steps were taken"):
            scheduler.step(x, scheduler.timesteps[-1], x, generator=Generator(0))
    if name not in (
        "DDPMScheduler",
        "EulerDiscreteScheduler",
        "EulerAncestralDiscreteScheduler",
        "LMSDiscreteScheduler",
    ):
        with pytest.raises(InputError, match="call set_timesteps before step"):  # the others begin with all timesteps
            getattr(schedulers, name)().step(x, 999, x)


def test_a_learned_variance_needs_twice_the_channels() -> None:
    scheduler = schedulers.DDPMScheduler(variance_type="learned")
    with pytest.raises(InputError, match="8 channels"):
        scheduler.step(np.ones(SHAPE), 5, np.ones(SHAPE))


def test_a_generator_list_of_the_wrong_length_is_refused() -> None:
    scheduler, x = schedulers.DDPMScheduler(), np.ones(SHAPE, np.float32)
    with pytest.raises(InputError, match="3 generators for a batch of 2"):
        scheduler.step(x, 5, x, generator=[Generator(s) for s in (1, 2, 3)])


def test_schedulers_are_imported_one_at_a_time_and_without_torch() -> None:
    code = (
        "import sys; from ingot.runtimes.schedulers import from_config; from_config({'_class_name': 'DDIMScheduler'});"
        "print([m for m in sys.modules if m.split('.')[0] in ('torch', 'diffusers', 'scipy') or m.endswith('unipc_multistep')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
