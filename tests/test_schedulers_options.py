"""Every option of every scheduler, held against diffusers as in the acceptance grid."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch

from ingot.runtimes import schedulers
from ingot.runtimes.noise import Generator

from .scheduler_options import ENDS, LAYOUTS, OPTIONS
from .scheduler_oracle import (
    CHAIN_RTOL,
    LOGARITHMIC,
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

__all__ = ["scipy_or_stand_in"]  # a fixture of this file too

# float timesteps that a rule lays out come from logarithms of sigmas: sigmas' own tolerance
TIMESTEP_RTOL = 1e-6


@pytest.mark.parametrize("name", OPTIONS)
def test_options_agree_with_diffusers(name: str) -> None:
    for options in OPTIONS[name]:
        step_rtol, chain_rtol = tolerances(name, options)
        for steps in (3, 7, 20):
            case = {**fitting(name, STABLE_DIFFUSION), **options}
            if not both_refuse(name, case, steps):
                compare(name, case, steps, step_rtol=step_rtol, chain_rtol=chain_rtol)


def tolerances(name: str, options: Mapping[str, Any]) -> tuple[float, float | None]:
    """Of a step and of a trajectory, with the worst that was measured on a processor with AVX2."""
    order = max(options.get(key, 0) for key in ("solver_order", "predictor_order", "corrector_order"))
    if name == "SASolverScheduler":  # diffusers takes its integrals in float32, as sums whose terms nearly cancel: 2e-4
        return (1e-5, CHAIN_RTOL) if order < 3 else (5e-4, 5e-4)
    if options.get("algorithm_type") == "sde-dpmsolver++" and order == 3:
        # the third-order stochastic solver multiplies second differences by 1/h², and rounding errors with them: 3e-5; where
        # those are of one block, by as much at every third step: a trajectory is off by 0.03 after 20
        return STEP_RTOL, None if name == "DPMSolverSinglestepScheduler" else 1e-4
    if order == 4:  # UniPC's corrector divides third differences by short steps: 5e-5
        return 1e-4, 1e-4
    if getattr(schedulers, name).order == 2:  # which call the model twice in a step of three for all of the way: 4e-5
        return STEP_RTOL, 1e-4
    return STEP_RTOL, CHAIN_RTOL


@pytest.mark.parametrize("name", [name for name in having("use_beta_sigmas") if "trained_betas" in options_of(name)])
def test_sigmas_laid_out_by_a_rule_agree_with_diffusers(name: str) -> None:
    # KDPM2's timesteps take diffusers long, and the spacing only moves the ends between which a rule lays the levels
    spacings = SPACINGS[:1] if name.startswith("KDPM2") else SPACINGS
    options: list[dict[str, Any]] = [
        {**layout, "timestep_spacing": spacing} for layout in LAYOUTS for spacing in spacings
    ]
    if "final_sigmas_type" in options_of(name):
        options += [{**layout, **end} for layout in LAYOUTS for end in ENDS]
    if name in ("EulerDiscreteScheduler", "UniPCMultistepScheduler"):
        options += [{**layout, "sigma_min": 0.05, "sigma_max": 12.0} for layout in LAYOUTS]
        options += [
            {**layout, "interpolation_type": "log_linear"} for layout in LAYOUTS if name == "EulerDiscreteScheduler"
        ]
    if name == "DPMSolverMultistepScheduler":
        options += [{"use_lu_lambdas": True, **end} for end in ENDS] + [
            {"use_lu_lambdas": True, "use_karras_sigmas": True}
        ]
        options += [{"use_lu_lambdas": True, "beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"}]
    # LMS extrapolates from sigma 20291 down, and multiplies rounding errors by as much; so do SA-Solver and DEIS, and rounding
    # spoils KDPM2's s_down there
    steep = ("DEISMultistepScheduler", "KDPM2AncestralDiscreteScheduler", "LMSDiscreteScheduler", "SASolverScheduler")
    if name not in steep:
        options += [
            {**layout, "beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"} for layout in LAYOUTS
        ]
    whole = options_of(name).get("use_flow_sigmas") is not None  # int64 timesteps are compared exactly even so
    for case in options:
        for steps in (1, 7, 20):
            given = fitting(name, {**STABLE_DIFFUSION, **case})
            compare(
                name,
                given,
                steps,
                timestep_rtol=0 if whole or name in LOGARITHMIC else TIMESTEP_RTOL,
                # SA-Solver's integrals (see `tolerances`), over the short steps that beta sigmas begin with: 1.3e-5
                step_rtol=3e-5 if name == "SASolverScheduler" else STEP_RTOL,
            )


@pytest.mark.parametrize("name", ["EDMEulerScheduler", "FlowMatchHeunDiscreteScheduler"])
def test_noise_is_churned_as_diffusers_does(name: str) -> None:
    churn = {"s_churn": 5.0, "s_tmin": 0.2, "s_tmax": 10.0, "s_noise": 1.01}
    compare(name, {}, 10, **churn)


@pytest.mark.parametrize("eta", [0.0, 0.3, 0.7, 1.0])
def test_tcd_adds_as_much_noise_as_eta_says(eta: float) -> None:
    for steps in (1, 4, 8, 50):
        # with eta 1 each of the noisy steps divides by alpha, 0.07 at first, and so multiplies rounding errors: 1e-4
        compare("TCDScheduler", {}, steps, chain_rtol=5e-4 if eta == 1 else CHAIN_RTOL, eta=eta)


def test_the_last_step_of_edm_dpm_solver_is_finite_where_diffusers_yields_nan() -> None:
    # 20 steps down to sigma_min end in one of no length, whose differences diffusers divides by it
    for schedule in ("karras", "exponential"):
        for order in (2, 3):
            options = {"final_sigmas_type": "sigma_min", "solver_type": "heun", "solver_order": order}
            ours, theirs = pair("EDMDPMSolverMultistepScheduler", sigma_schedule=schedule, **options)
            ours.set_timesteps(20)
            theirs.set_timesteps(20)
            assert drive(*shortened(ours, theirs, 19), forced=True) < STEP_RTOL
            x = np.ones(SHAPE, np.float32)
            assert np.isfinite(ours.step(x / 2, ours.timesteps[-1], x).prev_sample).all()
            last = theirs.step(torch.from_numpy(x / 2), theirs.timesteps[-1], torch.from_numpy(x))
            assert not last.prev_sample.isfinite().any()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("SASolverScheduler", {"predictor_order": 4, "corrector_order": 4}),
        ("SASolverScheduler", {"predictor_order": 3, "corrector_order": 4, "algorithm_type": "noise_prediction"}),
        ("SASolverScheduler", {}),
        ("DEISMultistepScheduler", {"solver_order": 3}),
    ],
)
def test_integrals_are_those_of_diffusers_in_double_precision(name: str, options: dict[str, Any]) -> None:
    ours, theirs = pair(name, **STABLE_DIFFUSION, **options)
    rng, noise = np.random.RandomState(0), Generator(5)
    ours.set_timesteps(20)
    theirs.set_timesteps(20)
    theirs.sigmas = theirs.sigmas.double()
    module = importlib.import_module(type(theirs).__module__)
    for t in ours.timesteps:
        x, out = (rng.randn(*SHAPE).astype(np.float32) for _ in range(2))
        z = copy.deepcopy(noise).randn(SHAPE)  # a double's noise would be another
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "randn_tensor", lambda *_, z=z, **__: torch.from_numpy(z).double(), raising=False)
            want = theirs.step(torch.from_numpy(out).double(), t, torch.from_numpy(x).double()).prev_sample.numpy()
        got = ours.step(out, t, x, generator=noise).prev_sample
        assert np.abs(got - want).max() < STEP_RTOL * (1 + np.abs(want).max())


@pytest.mark.parametrize("name", having("rescale_betas_zero_snr"))
def test_zero_terminal_snr_agrees_with_diffusers(name: str) -> None:
    base = {**STABLE_DIFFUSION, "rescale_betas_zero_snr": True}
    ours, theirs = pair(name, **base)
    # The rescaling takes square roots, which differ from torch's by a unit in the last place, and one minus ratios near 1:
    # 3e-7 was measured on a processor with AVX-512, 3e-6 on one with AVX2.
    np.testing.assert_allclose(ours.betas, theirs.betas.numpy(), rtol=0, atol=5e-6)
    np.testing.assert_allclose(ours.alphas_cumprod, theirs.alphas_cumprod.numpy(), rtol=5e-6, atol=0)
    for prediction in ("v_prediction", "epsilon", "sample"):
        for spacing in SPACINGS:
            options = {**base, "prediction_type": prediction, "timestep_spacing": spacing, "clip_sample": False}
            options = {key: value for key, value in options.items() if key in ours.defaults}
            for steps in (4, 20):
                if not both_refuse(name, options, steps):
                    # Euler's steps down from sigma 4096 take differences of squares, whose rounding errors come to 1e-4, and to
                    # 5e-4 on an AVX2 processor.
                    tolerance = 1e-3 if name.startswith("Euler") else STEP_RTOL
                    compare(
                        name, options, steps, step_rtol=tolerance, chain_rtol=2 * tolerance, sigma_rtol=5e-6
                    )  # as the betas that they come from


@pytest.mark.parametrize("eta", [0.3, 1.0])
@pytest.mark.parametrize("clipped_output", [False, True])
def test_ddim_adds_as_much_noise_as_eta_says(eta: float, clipped_output: bool) -> None:
    for spacing in SPACINGS:
        for steps in (1, 7, 20):
            compare(
                "DDIMScheduler",
                {**STABLE_DIFFUSION, "timestep_spacing": spacing},
                steps,
                eta=eta,
                use_clipped_model_output=clipped_output,
            )


@pytest.mark.parametrize("kind", ["learned", "learned_range"])
def test_ddpm_takes_its_variance_from_the_model(kind: str) -> None:
    if kind == "learned_range":
        for steps in (7, 20):
            compare("UnCLIPScheduler", {"variance_type": kind}, steps, channels=8)
    ours, theirs = pair("DDPMScheduler", variance_type=kind)
    for steps in (7, 20):
        ours.set_timesteps(steps)
        theirs.set_timesteps(steps)
        rng = np.random.RandomState(1)
        noise, their_noise = Generator(2), torch.Generator().manual_seed(2)
        for t in ours.timesteps:
            x, out = rng.randn(*SHAPE).astype(np.float32), rng.rand(2, 8, 4, 4).astype(np.float32)
            got = ours.step(out, t, x, generator=noise).prev_sample
            want = theirs.step(
                torch.from_numpy(out), torch.tensor(t), torch.from_numpy(x), generator=their_noise
            ).prev_sample
            np.testing.assert_allclose(got, want.numpy(), rtol=STEP_RTOL, atol=STEP_RTOL)


def test_a_variance_that_the_model_predicts_is_left_aside_by_dpm_solver() -> None:
    for kind in ("learned", "learned_range"):
        ours, theirs = pair("DPMSolverMultistepScheduler", variance_type=kind)
        ours.set_timesteps(5)
        theirs.set_timesteps(5)
        for t in ours.timesteps:
            x, out = np.ones((1, 3, 4, 4), np.float32), np.full((1, 6, 4, 4), 0.3, np.float32)
            want = theirs.step(torch.from_numpy(out), t, torch.from_numpy(x)).prev_sample.numpy()
            np.testing.assert_allclose(ours.step(out, t, x).prev_sample, want, rtol=STEP_RTOL, atol=STEP_RTOL)


def test_euler_churns_as_diffusers_does() -> None:
    churn = {"s_churn": 5.0, "s_tmin": 0.2, "s_tmax": 10.0, "s_noise": 1.01}
    for prediction in ("epsilon", "v_prediction", "sample"):
        compare("EulerDiscreteScheduler", {**STABLE_DIFFUSION, "prediction_type": prediction}, 10, **churn)


def test_euler_continuous_timesteps_are_logarithms_of_sigma() -> None:
    for layout in ({}, *LAYOUTS, {"interpolation_type": "log_linear"}):
        options = {
            "timestep_type": "continuous",
            "prediction_type": "v_prediction",
            "sigma_min": 0.002,
            "sigma_max": 700.0,
            **layout,
        }
        # a logarithm near 0 is relatively uncertain; 1e-6 of the largest, 1.6, is what the sigmas' tolerance comes to
        ours, theirs = pair("EulerDiscreteScheduler", **options)
        ours.set_timesteps(9)
        theirs.set_timesteps(9)
        np.testing.assert_allclose(ours.timesteps, theirs.timesteps.numpy(), rtol=0, atol=2e-6)
        np.testing.assert_allclose(ours.sigmas, theirs.sigmas.numpy(), rtol=1e-6)


def test_the_last_step_of_bh1_is_finite_where_diffusers_yields_nan() -> None:
    ours, theirs = pair("UniPCMultistepScheduler", solver_type="bh1", **STABLE_DIFFUSION)
    ours.set_timesteps(5)
    theirs.set_timesteps(5)
    assert drive(*shortened(ours, theirs, 4), forced=True) < STEP_RTOL
    x = np.ones(SHAPE, np.float32)
    last = ours.step(x / 2, ours.timesteps[-1], x)
    assert (
        not theirs.step(torch.from_numpy(x / 2), theirs.timesteps[-1], torch.from_numpy(x)).prev_sample.isfinite().any()
    )
    # without noise left, the step ends at the predicted sample of the corrected one; here at least it is finite
    assert np.isfinite(last.prev_sample).all()


def shortened(ours: Any, theirs: Any, calls: int) -> tuple[Any, Any]:
    """The same schedulers, with views that let `drive` take only the first calls."""
    return _First(ours, calls), _First(theirs, calls)


class _First:
    def __init__(self, scheduler: Any, calls: int) -> None:
        self._scheduler, self.timesteps = scheduler, scheduler.timesteps[:calls]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._scheduler, name)


@pytest.mark.parametrize("name", schedulers.SCHEDULERS)
def test_float16_is_computed_in_float32_and_cast_back(name: str) -> None:
    ours, theirs = pair(name, **fitting(name, STABLE_DIFFUSION))
    ours.set_timesteps(7)
    theirs.set_timesteps(7)
    # diffusers computes some classes in float16 throughout: rounding to 2^-11, multiplied by up to 1 / alpha = 15
    assert drive(ours, theirs, forced=True, dtype=np.float16) < 1e-2
