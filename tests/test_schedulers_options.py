"""Every option of every scheduler, held against diffusers as in the acceptance grid."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from ingot.runtimes import schedulers
from ingot.runtimes.noise import Generator

from .test_schedulers import (
    CHAIN_RTOL,
    SHAPE,
    SPACINGS,
    STABLE_DIFFUSION,
    STEP_RTOL,
    both_refuse,
    compare,
    drive,
    pair,
    scipy_or_stand_in,
)

__all__ = ["scipy_or_stand_in"]  # a fixture of this file too

THRESHOLDING = {"thresholding": True, "dynamic_thresholding_ratio": 0.9, "sample_max_value": 1.5}
CLIPPING = [
    {"clip_sample": True},
    {"clip_sample": True, "clip_sample_range": 2.0},
    {"clip_sample": False},
    THRESHOLDING,
]
LAYOUTS = [{"use_karras_sigmas": True}, {"use_exponential_sigmas": True}, {"use_beta_sigmas": True}]
ENDS = [{"final_sigmas_type": "zero"}, {"final_sigmas_type": "sigma_min"}]
# float timesteps that a rule lays out come from logarithms of sigmas: sigmas' own tolerance
TIMESTEP_RTOL = 1e-6

OPTIONS: dict[str, list[dict[str, Any]]] = {
    "DDIMScheduler": [
        {}, *CLIPPING, {"set_alpha_to_one": False, "steps_offset": 1},
        {"set_alpha_to_one": False, "timestep_spacing": "trailing"},
    ],
    "DDPMScheduler": [
        {}, *CLIPPING, {"steps_offset": 1}, {"variance_type": "fixed_small_log"}, {"variance_type": "fixed_large"},
        {"beta_schedule": "laplace"}, {"beta_schedule": "sigmoid"},
    ],
    "PNDMScheduler": [
        {"skip_prk_steps": True, "steps_offset": 1}, {"skip_prk_steps": True, "set_alpha_to_one": True}, {"set_alpha_to_one": True},
        {"skip_prk_steps": True, "timestep_spacing": "linspace"}, {"skip_prk_steps": True, "timestep_spacing": "trailing"},
        {"skip_prk_steps": True, "prediction_type": "v_prediction"},
    ],
    "LMSDiscreteScheduler": [{}, {"steps_offset": 1, "timestep_spacing": "leading"}],
    "EulerDiscreteScheduler": [
        {}, *ENDS, {"interpolation_type": "log_linear"}, {"steps_offset": 1, "timestep_spacing": "leading"},
        {"prediction_type": "original_sample"},
    ],
    "EulerAncestralDiscreteScheduler": [{}, {"steps_offset": 1, "timestep_spacing": "leading"}],
    "DPMSolverMultistepScheduler": [
        *({"algorithm_type": algorithm, "solver_type": solver, "solver_order": order, "final_sigmas_type": end}
          for algorithm in ("dpmsolver++", "sde-dpmsolver++", "dpmsolver", "sde-dpmsolver")
          for solver in ("midpoint", "heun") for order in (1, 2, 3) for end in ("zero", "sigma_min")),
        {"lower_order_final": False}, {"lower_order_final": False, "final_sigmas_type": "sigma_min", "solver_order": 3},
        {"euler_at_final": True, "final_sigmas_type": "sigma_min"}, {"steps_offset": 1, "timestep_spacing": "leading"},
        THRESHOLDING, {**THRESHOLDING, "algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"},
        {"lambda_min_clipped": -5.1, "beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"},
        {"lambda_min_clipped": -1.0}, {"lambda_min_clipped": -1.0, "timestep_spacing": "leading"},
        {"lambda_min_clipped": -1.0, "timestep_spacing": "trailing"},
    ],
    "UniPCMultistepScheduler": [
        *({"solver_type": solver, "solver_order": order, "predict_x0": x0, "final_sigmas_type": end}
          for solver in ("bh1", "bh2") for order in (1, 2, 3, 4) for x0 in (True, False) for end in ("zero", "sigma_min")
          if solver == "bh2" or end == "sigma_min"),  # bh1 with zero has its own test below
        {"disable_corrector": [0, 1, 5]}, {"lower_order_final": False, "final_sigmas_type": "sigma_min", "solver_order": 3},
        {"lower_order_final": False, "solver_order": 1}, {"steps_offset": 1, "timestep_spacing": "leading"}, THRESHOLDING,
    ],
    "LCMScheduler": [{}, *CLIPPING, {"original_inference_steps": 100}, {"timestep_scaling": 3.0}, {"set_alpha_to_one": False}],
}  # fmt: skip


@pytest.mark.parametrize("name", OPTIONS)
def test_options_agree_with_diffusers(name: str) -> None:
    for options in OPTIONS[name]:
        # the third-order stochastic solver multiplies second differences by 1/h², and rounding errors with them: worst 3e-5
        steep = options.get("solver_order") == 3 and options.get("algorithm_type") == "sde-dpmsolver++"
        for steps in (3, 7, 20):
            if not both_refuse(name, {**STABLE_DIFFUSION, **options}, steps):
                # the fourth-order corrector divides third differences by short steps: 5e-5 on an AVX2 processor
                fourth = options.get("solver_order") == 4
                compare(
                    name,
                    {**STABLE_DIFFUSION, **options},
                    steps,
                    step_rtol=1e-4 if fourth else STEP_RTOL,
                    chain_rtol=1e-4 if steep or fourth else CHAIN_RTOL,
                )


@pytest.mark.parametrize(
    "name", ["LMSDiscreteScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler"]
)
def test_sigmas_laid_out_by_a_rule_agree_with_diffusers(name: str) -> None:
    options: list[dict[str, Any]] = [
        {**layout, "timestep_spacing": spacing} for layout in LAYOUTS for spacing in SPACINGS
    ]
    if name != "LMSDiscreteScheduler":
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
    if (
        name != "LMSDiscreteScheduler"
    ):  # which extrapolates from sigma 20291 down, and multiplies rounding errors by as much
        options += [
            {**layout, "beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"} for layout in LAYOUTS
        ]
    whole = name.endswith("MultistepScheduler")  # int64 timesteps are compared exactly even so
    for case in options:
        for steps in (1, 7, 20):
            compare(name, {**STABLE_DIFFUSION, **case}, steps, timestep_rtol=0 if whole else TIMESTEP_RTOL)


@pytest.mark.parametrize(
    "name", [name for name in schedulers.SCHEDULERS if "rescale_betas_zero_snr" in getattr(schedulers, name).defaults]
)
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
    ours, theirs = pair(name, **STABLE_DIFFUSION)
    ours.set_timesteps(7)
    theirs.set_timesteps(7)
    # diffusers computes some classes in float16 throughout: rounding to 2^-11, multiplied by up to 1 / alpha = 15
    assert drive(ours, theirs, forced=True, dtype=np.float16) < 1e-2
