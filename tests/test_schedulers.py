"""The acceptance grid: every scheduler × spacing × prediction type × step count, held against diffusers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ingot.runtimes import schedulers
from ingot.runtimes.noise import Generator
from ingot.runtimes.schedulers.schedules import beta_quantile

from .scheduler_oracle import (
    SHAPE,
    SPACINGS,
    STABLE_DIFFUSION,
    STEP_RTOL,
    both_refuse,
    compare,
    drive,
    fitting,
    having,
    options_of,
    pair,
    scipy_or_stand_in,
)

__all__ = ["drive", "scipy_or_stand_in"]  # for a test of another scheduler, and a fixture of this file

PREDICTIONS = ("epsilon", "v_prediction", "sample")
STEPS = (1, 2, 4, 7, 20, 50)
UNKNOWN = {  # which classes do not know a prediction type
    "sample": (
        "EDMDPMSolverMultistepScheduler",
        "EDMEulerScheduler",
        "EulerAncestralDiscreteScheduler",
        "KDPM2AncestralDiscreteScheduler",
        "KDPM2DiscreteScheduler",
        "PNDMScheduler",
    ),
    "v_prediction": ("UnCLIPScheduler",),
}


@pytest.mark.parametrize(
    ("prediction", "name"),
    [
        (prediction, name)
        for prediction in PREDICTIONS
        for name in schedulers.SCHEDULERS
        if prediction == "epsilon" or "prediction_type" in options_of(name)
    ],
)
def test_every_spacing_and_step_count_agrees_with_diffusers(name: str, prediction: str) -> None:
    refused = 0
    spaced = "timestep_spacing" in options_of(name)
    for spacing in SPACINGS if spaced else SPACINGS[:1]:
        for steps in STEPS:
            options = {**STABLE_DIFFUSION, "prediction_type": prediction, "timestep_spacing": spacing}
            if both_refuse(name, fitting(name, options), steps):
                refused += 1
                continue
            # in two steps the ancestral KDPM2 falls from sigma 14.6 to 0.03 at once, for which rounding spoils one part in
            # fifty of diffusers' s_down: 1e-3
            tolerance = 2e-3 if name == "KDPM2AncestralDiscreteScheduler" and steps == 2 else STEP_RTOL
            compare(name, fitting(name, options), steps, step_rtol=tolerance, chain_rtol=2 * tolerance)
    # PNDM's Runge-Kutta start needs four steps, unCLIP's ends two; consistency models were trained with 40
    expected = {"PNDMScheduler": 6, "CMStochasticIterativeScheduler": 1, "UnCLIPScheduler": 1}.get(name, 0)
    if name in UNKNOWN.get(prediction, ()):
        expected = len(STEPS) * (len(SPACINGS) if spaced else 1)
    assert refused == expected


@pytest.mark.parametrize("name", having("beta_schedule"))
def test_betas_and_their_products_are_equal_to_the_bit(name: str) -> None:
    kinds = [{"beta_schedule": kind} for kind in ("linear", "scaled_linear", "squaredcos_cap_v2")]
    kinds += [STABLE_DIFFUSION, {"num_train_timesteps": 577, **STABLE_DIFFUSION}]
    kinds += [
        {
            "num_train_timesteps": 50,
            "trained_betas": np.linspace(0.001, 0.3, 50).tolist(),
            "original_inference_steps": 50,
        }
    ]
    kinds += {
        "DDPMScheduler": [{"beta_schedule": "laplace"}],
        "HeunDiscreteScheduler": [{"beta_schedule": "exp"}],
    }.get(name, [])
    for options in kinds if name != "UnCLIPScheduler" else [{}]:
        ours, theirs = pair(name, **fitting(name, options))
        assert ours.betas.dtype == ours.alphas_cumprod.dtype == np.float32
        assert np.array_equal(ours.betas, theirs.betas.numpy()), options
        assert np.array_equal(ours.alphas_cumprod, theirs.alphas_cumprod.numpy()), options


def test_the_sigmoid_schedule_agrees_to_the_last_place() -> None:
    ours, theirs = pair("DDPMScheduler", beta_schedule="sigmoid")
    # torch's float32 sigmoid is rounded differently in a quarter of the entries: one or two units in the last place
    np.testing.assert_allclose(ours.betas, theirs.betas.numpy(), rtol=2.5e-7, atol=0)


@pytest.mark.parametrize(
    "name", [name for name in having("trained_betas") if name != "KDPM2AncestralDiscreteScheduler"]
)
def test_the_cosine_schedule_agrees_with_diffusers(name: str) -> None:
    # PNDM's first step starts where next to nothing of the signal is left, and divides by its root: 1.4e-4 was
    # measured on a processor with AVX2 alone, where nothing told which operation of torch's it is
    # DEIS subtracts what the noise adds to a sample times the ratio of the alphas, 4000 there: 1.5e-3
    tolerance = {"PNDMScheduler": 3e-4, "DEISMultistepScheduler": 3e-3}.get(name, STEP_RTOL)
    for spacing in SPACINGS:
        for steps in (7, 20):
            options = {
                "beta_schedule": "squaredcos_cap_v2",
                "prediction_type": "v_prediction",
                "timestep_spacing": spacing,
            }
            compare(
                name,
                fitting(name, options),
                steps,
                step_rtol=tolerance,
                chain_rtol=2 * tolerance,
            )


def test_the_ancestral_kdpm2_survives_a_fall_from_very_high_sigma_where_diffusers_yields_nan() -> None:
    options = {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"}
    name, spoilt = "KDPM2AncestralDiscreteScheduler", 0
    for steps in (4, 7, 20):
        ours, theirs = pair(name, **options)
        ours.set_timesteps(steps)
        theirs.set_timesteps(steps)
        spoilt += int(theirs.timesteps.isnan().any())
        x, noise = np.ones(SHAPE, np.float32) * ours.init_noise_sigma, Generator(0)
        for t in ours.timesteps:
            x = ours.step(ours.scale_model_input(x, t) / 2, t, x, generator=noise).prev_sample
        assert np.isfinite(x).all()
        # where it does not, its rounding is all that is left of s_down: only the levels themselves can be compared
        np.testing.assert_allclose(ours.timesteps[::2], theirs.timesteps[::2].numpy(), rtol=1e-6)
    assert spoilt


def test_the_ancestral_sampler_survives_a_fall_from_very_high_sigma_where_diffusers_yields_nan() -> None:
    ours, theirs = pair(
        "EulerAncestralDiscreteScheduler", beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction"
    )
    ours.set_timesteps(4)
    theirs.set_timesteps(4)
    x = np.ones(SHAPE, np.float32) * ours.init_noise_sigma
    scaled = theirs.scale_model_input(torch.from_numpy(x), theirs.timesteps[0])
    assert np.isfinite(ours.step(x / 2, ours.timesteps[0], x, generator=Generator(0)).prev_sample).all()
    assert theirs.step(scaled / 2, theirs.timesteps[0], torch.from_numpy(x)).prev_sample.isnan().all()


def test_beta_quantiles_are_those_of_scipy() -> None:
    wanted = {  # scipy 1.17.1: scipy.stats.beta.ppf(q, 0.6, 0.6)
        0.0: 0.0,
        0.001: 1.855873851745199e-05,
        0.02: 0.002732982024577027,
        0.1: 0.03958440558878085,
        0.25: 0.17568037865269498,
        0.3333333333333333: 0.2754132907776234,
        0.49: 0.4861289142781599,
        0.6: 0.6372990092467856,
        0.75: 0.824319621347305,
        0.95: 0.9874455431263885,
        0.999: 0.9999814412614826,
        1.0: 1.0,
    }
    ours = beta_quantile(np.array(list(wanted)), 0.6)
    np.testing.assert_allclose(ours, list(wanted.values()), rtol=1e-10, atol=0)  # both are double precision solvers
    assert math.isclose(float(beta_quantile(np.array(0.5), 0.6)), 0.5, rel_tol=1e-12)
