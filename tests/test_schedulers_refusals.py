"""What a scheduler refuses, and that every message says what came and what would do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ingot.runtimes import schedulers
from ingot.runtimes.errors import InputError
from ingot.runtimes.noise import Generator

from .scheduler_oracle import SHAPE, both_refuse, fitting, scipy_or_stand_in

__all__ = ["scipy_or_stand_in"]  # a fixture of this file too

SIGMA_MIN, ZERO_SNR = {"final_sigmas_type": "sigma_min"}, {"rescale_betas_zero_snr": True}
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("DDIMScheduler", {"prediction_type": "flow"}, r"prediction_type='flow' is not supported; 'epsilon' or 'sample' or 'v_prediction'"),
    ("DDIMScheduler", {"timestep_spacing": "even"}, "timestep_spacing='even'"),
    ("DDIMScheduler", {"beta_schedule": "sigmoid"}, "beta_schedule='sigmoid'"),
    ("DDPMScheduler", {"variance_type": "fixed_large_log"}, "variance_type='fixed_large_log'"),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver"}, "final_sigmas_type='zero'.*'sigma_min' would do"),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "data_prediction"}, "algorithm_type='data_prediction'"),
    ("DPMSolverMultistepScheduler", {**FLOW, "use_karras_sigmas": True}, "use_flow_sigmas and use_karras_sigmas exclude"),
    ("DPMSolverMultistepScheduler", {**FLOW, "use_lu_lambdas": True, "prediction_type": "epsilon"}, "use_lu_lambdas exclude"),
    ("DPMSolverMultistepScheduler", {**FLOW, "algorithm_type": "dpmsolver", **SIGMA_MIN}, "flow_prediction' needs a solver of"),
    ("DPMSolverSinglestepScheduler", {"algorithm_type": "dpmsolver"}, "final_sigmas_type='zero'.*'sigma_min' would do"),
    ("DPMSolverSinglestepScheduler", {"algorithm_type": "sde-dpmsolver", **SIGMA_MIN}, "algorithm_type='sde-dpmsolver'"),
    ("DPMSolverSinglestepScheduler", {"solver_order": 4}, "solver_order=4"),
    ("DEISMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, "algorithm_type='sde-dpmsolver"),
    ("DEISMultistepScheduler", {"solver_type": "rk4"}, "solver_type='rk4'"),
    ("EDMDPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++", "solver_order": 3}, "no third order"),
    ("EDMDPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver"}, "algorithm_type='dpmsolver'"),
    ("EDMEulerScheduler", {"prediction_type": "sample"}, "prediction_type='sample'"),
    ("EDMEulerScheduler", {"sigma_schedule": "cosine"}, "sigma_schedule='cosine'"),
    ("FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True}, "needs mu"),
    ("FlowMatchEulerDiscreteScheduler", {"time_shift_type": "cubic"}, "time_shift_type='cubic'"),
    ("FlowMatchEulerDiscreteScheduler", {"use_karras_sigmas": True, "use_beta_sigmas": True}, "only one of"),
    ("HeunDiscreteScheduler", {"beta_schedule": "sigmoid"}, "beta_schedule='sigmoid'"),
    ("KDPM2DiscreteScheduler", {"prediction_type": "sample"}, "prediction_type='sample'"),
    ("KDPM2AncestralDiscreteScheduler", {"prediction_type": "sample"}, "prediction_type='sample'"),
    ("SASolverScheduler", {"algorithm_type": "deis"}, "algorithm_type='deis'"),
    ("SASolverScheduler", {"predictor_order": 5}, "predictor_order=5"),
    ("SASolverScheduler", {"corrector_order": 0}, "corrector_order=0"),
    ("TCDScheduler", {"original_inference_steps": 3}, "more than the 3 timesteps"),
    ("UniPCMultistepScheduler", {**FLOW, "use_beta_sigmas": True}, "use_flow_sigmas and use_beta_sigmas exclude"),
    ("UniPCMultistepScheduler", {**FLOW, "use_dynamic_shifting": True}, "needs mu"),
    ("UniPCMultistepScheduler", {**FLOW, "predict_x0": False, **SIGMA_MIN}, "flow_prediction' needs a solver of"),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver", "solver_order": 3, **SIGMA_MIN}, "third order"),
    ("DPMSolverMultistepScheduler", {"solver_type": "rk4"}, "solver_type='rk4'"),
    ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True, "use_beta_sigmas": True}, "only one of"),
    ("DPMSolverMultistepScheduler", {"final_sigmas_type": "half"}, "final_sigmas_type='half'"),
    ("EulerDiscreteScheduler", {"interpolation_type": "cubic"}, "interpolation_type='cubic'"),
    ("EulerDiscreteScheduler", {"use_exponential_sigmas": True, "use_beta_sigmas": True}, "only one of"),
    ("UnCLIPScheduler", {"beta_schedule": "linear"}, "beta_schedule='linear'"),
    ("UnCLIPScheduler", {"prediction_type": "v_prediction"}, "prediction_type='v_prediction'"),
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
    # a high order is reached in longer runs only
    steps = 7 if "solver_order" in options else 20 if "predictor_order" in options else 4
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
    most = scheduler.config.num_train_timesteps
    for steps in (0, -1, most + 1, 2.5, True, "7"):
        with pytest.raises(InputError, match=f"whole number from 1 to {most}"):
            scheduler.set_timesteps(steps)
    if "use_dynamic_shifting" not in scheduler.defaults:
        with pytest.raises(InputError, match=f"{name} does not take mu"):
            scheduler.set_timesteps(4, mu=1.0)
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
    with pytest.raises(InputError, match=r"reach to noise level 1\.2"):
        schedulers.FlowMatchEulerDiscreteScheduler().set_timesteps(sigmas=[1.2, 0.5])
    with pytest.raises(InputError, match=r"reach to noise level 1\.1"):
        schedulers.FlowMatchEulerDiscreteScheduler().set_timesteps(timesteps=[1100, 500])
    with pytest.raises(InputError, match="use_flow_sigmas=True alone"):
        schedulers.UniPCMultistepScheduler().set_timesteps(sigmas=[1.0, 0.5])
    with pytest.raises(InputError, match=r"places from 0 \(sigma_max\) to 1"):
        schedulers.EDMEulerScheduler().set_timesteps(sigmas=[80.0, 1.0])
    with pytest.raises(InputError, match="timesteps must fall, from below 40"):
        schedulers.CMStochasticIterativeScheduler().set_timesteps(timesteps=[40, 0])
    for name in ("HeunDiscreteScheduler", "DPMSolverSinglestepScheduler"):
        with pytest.raises(InputError, match="give num_inference_steps"):
            getattr(schedulers, name)(use_karras_sigmas=True).set_timesteps(timesteps=[900, 1])
    with pytest.raises(InputError, match="strength"):
        schedulers.LCMScheduler().set_timesteps(4, strength=1.5)
    with pytest.raises(InputError, match="leaves none"):
        schedulers.LCMScheduler().set_timesteps(timesteps=[999], strength=0.2)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("FlowMatchEulerDiscreteScheduler", {"shift": 0}, "shift=0 is not above 0"),
        ("FlowMatchEulerDiscreteScheduler", {"shift_terminal": 1.0}, "shift_terminal=1.0 is not a number from 0"),
        ("FlowMatchEulerDiscreteScheduler", {"invert_sigmas": True, "stochastic_sampling": True}, "ends in noise"),
        ("FlowMatchHeunDiscreteScheduler", {"shift": -1.0}, "shift=-1.0 is not above 0"),
        ("DPMSolverMultistepScheduler", {"prediction_type": "flow_prediction"}, "needs use_flow_sigmas=True"),
        ("DPMSolverMultistepScheduler", {"time_shift_type": "linear"}, "time_shift_type='linear'"),
        ("EDMEulerScheduler", {"sigma_min": 90.0}, "sigma_min=90.0 and sigma_max=80.0 must rise"),
        ("CMStochasticIterativeScheduler", {"sigma_data": 0}, "sigma_data=0 is not above 0"),
        ("SASolverScheduler", {"tau_func": 1.0}, "tau_func=1.0 is not a function"),
    ],
)
def test_options_that_make_no_sense_are_refused_though_diffusers_takes_them(
    name: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        getattr(schedulers, name)(**options)


@pytest.mark.parametrize("name", ["FlowMatchEulerDiscreteScheduler", "UniPCMultistepScheduler"])
def test_mu_must_be_a_number_and_there_when_it_is_wanted(name: str) -> None:
    flow = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "use_dynamic_shifting": True}
    scheduler = getattr(schedulers, name)(**fitting(name, flow))
    for mu in (True, "1", float("nan")):
        with pytest.raises(InputError, match="mu must be a number"):
            scheduler.set_timesteps(4, mu=mu)
    linear = getattr(schedulers, name)(**fitting(name, flow), time_shift_type="linear")
    with pytest.raises(InputError, match="mu=-1 must be above 0"):
        linear.set_timesteps(4, mu=-1)
    with pytest.raises(InputError, match=r"shift_terminal=0\.1 cannot be reached"):
        getattr(schedulers, name)(**fitting(name, flow), shift_terminal=0.1).set_timesteps(1, mu=0.5)
    for options in ({}, {"use_flow_sigmas": True}):
        with pytest.raises(
            InputError, match="does not take mu: it acts with use_dynamic_shifting, which is False here"
        ):
            schedulers.DPMSolverMultistepScheduler(**options).set_timesteps(4, mu=0.5)


def test_a_run_cannot_be_entered_inside_a_step() -> None:
    for name in ("HeunDiscreteScheduler", "KDPM2DiscreteScheduler", "FlowMatchHeunDiscreteScheduler"):
        scheduler, x = getattr(schedulers, name)(), np.ones(SHAPE, np.float32)
        scheduler.set_timesteps(6)
        with pytest.raises(
            InputError, match=r"calls the model 2 times in a step: a run begins at one of timesteps\[::2\]"
        ):
            scheduler.set_begin_index(3)
    scheduler = schedulers.KDPM2DiscreteScheduler()
    scheduler.set_timesteps(6)
    with pytest.raises(InputError, match="not at place 3"):
        scheduler.step(x, scheduler.timesteps[3], x)


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
        with pytest.raises(InputError, match=f"all {len(scheduler.timesteps)} steps were taken"):
            scheduler.step(x, scheduler.timesteps[-1], x, generator=Generator(0))
    if name not in (
        "CMStochasticIterativeScheduler",
        "DDPMScheduler",
        "EDMEulerScheduler",
        "EulerDiscreteScheduler",
        "EulerAncestralDiscreteScheduler",
        "FlowMatchEulerDiscreteScheduler",
        "LMSDiscreteScheduler",
        "UnCLIPScheduler",
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
