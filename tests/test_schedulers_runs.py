"""How a run is started, entered half-way, noised and repeated, held against diffusers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from ingot.runtimes import schedulers
from ingot.runtimes.noise import Generator

from .scheduler_oracle import (
    CHAIN_RTOL,
    SHAPE,
    STABLE_DIFFUSION,
    compare,
    drive,
    fitting,
    options_of,
    pair,
    same_schedule,
    scipy_or_stand_in,
)
from .test_schedulers_options import TIMESTEP_RTOL

__all__ = ["scipy_or_stand_in"]  # a fixture of this file too

CUSTOM: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("DDPMScheduler", {}, {"timesteps": [999, 700, 500, 20, 0]}),
    ("EulerDiscreteScheduler", {}, {"timesteps": [999, 850, 736, 645, 545, 455, 343, 233, 124, 24]}),
    ("EulerDiscreteScheduler", {"final_sigmas_type": "sigma_min"}, {"timesteps": [900.5, 20.25]}),
    ("EulerDiscreteScheduler", {}, {"sigmas": [14.615, 6.475, 3.861, 2.697, 1.886, 0.963, 0.399, 0.152, 0.0]}),
    ("EulerDiscreteScheduler", {"use_karras_sigmas": True}, {"sigmas": [10.0, 1.0, 0.0]}),
    ("DPMSolverMultistepScheduler", {}, {"timesteps": [999, 845, 730, 587, 443, 310, 193, 116, 53, 13]}),
    # Align Your Steps (Sabour et al. 2024): the timesteps and noise levels for Stable Diffusion 1 and XL
    *(
        (name, {}, {"timesteps": [999, 850, 736, 645, 545, 455, 343, 233, 124, 24]})
        for name in (
            "DPMSolverMultistepScheduler",
            "DPMSolverSinglestepScheduler",
            "HeunDiscreteScheduler",
            "DDPMScheduler",
        )
    ),
    (
        "EulerDiscreteScheduler",
        {},
        {"sigmas": [14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.38, 0.234, 0.113, 0.029]},
    ),
    ("HeunDiscreteScheduler", {"prediction_type": "v_prediction"}, {"timesteps": [900.5, 20.25]}),
    ("DPMSolverSinglestepScheduler", {"solver_order": 3}, {"timesteps": [999, 845, 730, 587, 443, 310, 193]}),
    ("TCDScheduler", {}, {"timesteps": [999, 759, 499, 259]}),
    ("TCDScheduler", {}, {"timesteps": [999, 759, 499, 259], "strength": 0.6}),
    ("EDMEulerScheduler", {}, {"sigmas": [0.0, 0.1, 0.5, 1.0]}),
    ("EDMEulerScheduler", {"sigma_schedule": "exponential"}, {"sigmas": [0.0, 0.1, 0.5, 1.0]}),
    ("CMStochasticIterativeScheduler", {}, {"timesteps": [22, 0]}),
    ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}, {"sigmas": [1.0, 0.75, 0.5, 0.25]}),
    ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}, {"sigmas": [1.0, 0.75, 0.5, 0.25], "mu": 0.5}),
    ("FlowMatchEulerDiscreteScheduler", {"use_beta_sigmas": True}, {"timesteps": [1000, 800, 600, 400, 300, 200, 100]}),
    ("LCMScheduler", {}, {"timesteps": [999, 759, 499, 259]}),
    ("LCMScheduler", {}, {"timesteps": [999, 759, 499, 259], "strength": 0.6}),
]


@pytest.mark.parametrize(("name", "options", "run"), CUSTOM)
def test_custom_schedules_agree_with_diffusers(name: str, options: dict[str, Any], run: dict[str, Any]) -> None:
    rtol = TIMESTEP_RTOL if name == "EulerDiscreteScheduler" and "sigmas" in run else 0
    compare(name, {**fitting(name, STABLE_DIFFUSION), **options}, None, run=run, timestep_rtol=rtol)


@pytest.mark.parametrize(
    "run", [{"original_inference_steps": 100}, {"strength": 0.5}, {"strength": 0.33, "original_inference_steps": 40}]
)
def test_lcm_takes_its_steps_from_the_distilled_ones(run: dict[str, Any]) -> None:
    for steps in (1, 4, 8):
        compare("LCMScheduler", {}, steps, run=run)
        compare("TCDScheduler", {}, steps, run=run)


@pytest.mark.parametrize("name", schedulers.SCHEDULERS)
def test_a_run_entered_half_way_agrees_with_diffusers(name: str) -> None:
    for options in ({}, {"skip_prk_steps": True}, {"solver_order": 3}):
        if not set(options) <= set(options_of(name)):
            continue
        for begin in (0, 3, 9):
            for told in (True, False):  # image-to-image says where it starts; without that the timestep is looked up
                ours, theirs = pair(name, **fitting(name, STABLE_DIFFUSION), **options)
                start = begin * ours.order  # as diffusers' pipelines count
                ours.set_timesteps(10)
                theirs.set_timesteps(10)
                if told and hasattr(theirs, "set_begin_index"):
                    ours.set_begin_index(start)
                    theirs.set_begin_index(start)
                if name == "PNDMScheduler" and not options:
                    continue  # Runge-Kutta calls come in fours from the start: diffusers cannot enter them either
                assert drive(ours, theirs, forced=False, start=start) < CHAIN_RTOL


def noised(theirs: Any, original: Any, noise: Any, timesteps: Any) -> Any:
    """diffusers' `add_noise`, or `scale_noise` of flow matching: one of those two takes one timestep, and begins a run."""
    if hasattr(theirs, "add_noise"):
        return theirs.add_noise(original, noise, timesteps)
    if theirs.order == 1:
        return theirs.scale_noise(original, timesteps, noise)
    rows = []
    for x, z, t in zip(original, noise, timesteps.expand(len(original)), strict=True):
        theirs._step_index = None
        rows.append(theirs.scale_noise(x, t, z))
    return torch.stack(rows)


@pytest.mark.parametrize("name", schedulers.SCHEDULERS)
def test_noise_is_added_as_diffusers_adds_it(name: str) -> None:
    ours, theirs = pair(name, **fitting(name, STABLE_DIFFUSION))
    rng = np.random.RandomState(3)
    original, noise = (rng.randn(*SHAPE).astype(np.float32) for _ in range(2))
    as_torch = (torch.from_numpy(original), torch.from_numpy(noise))
    steps = 10
    for begin in (None, 4):
        ours.set_timesteps(steps)
        theirs.set_timesteps(steps)
        if begin is not None and hasattr(theirs, "set_begin_index"):
            ours.set_begin_index(begin)
            theirs.set_begin_index(begin)
        for places in ([4, 4], [5, 9], [4]):
            want = noised(theirs, *as_torch, theirs.timesteps[places]).numpy()
            # float32 arithmetic of one product and one sum
            got = ours.add_noise(original, noise, ours.timesteps[places])
            np.testing.assert_allclose(got, want, rtol=2e-6, atol=2e-6)
            if hasattr(theirs, "scale_noise"):
                assert np.array_equal(ours.scale_noise(original, ours.timesteps[places], noise), got)
        assert np.array_equal(
            ours.add_noise(original, noise, ours.timesteps[4]), ours.add_noise(original, noise, ours.timesteps[[4]])
        )
        half = ours.add_noise(original.astype(np.float16), noise.astype(np.float16), ours.timesteps[4:5])
        assert half.dtype == np.float16


def test_added_noise_follows_the_run_once_it_began() -> None:
    # inpainting noises the original anew after each step
    for name in ("EulerDiscreteScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler"):
        ours, theirs = pair(name, **STABLE_DIFFUSION)
        x = np.ones(SHAPE, np.float32)
        for scheduler in (ours, theirs):
            scheduler.set_timesteps(6)
            scheduler.set_begin_index(2)
        for at in (2, 3, 4):
            ours.scale_model_input(x, ours.timesteps[at])
            theirs.scale_model_input(torch.from_numpy(x), theirs.timesteps[at])
            ours.step(x / 2, ours.timesteps[at], x)
            theirs.step(torch.from_numpy(x / 2), theirs.timesteps[at], torch.from_numpy(x))
            want = theirs.add_noise(
                torch.from_numpy(x), torch.from_numpy(-x), theirs.timesteps[at + 1 : at + 2]
            ).numpy()
            np.testing.assert_allclose(ours.add_noise(x, -x, ours.timesteps[at + 1]), want, rtol=2e-6, atol=2e-6)


def test_a_list_of_generators_gives_each_image_its_own_noise() -> None:
    scheduler = schedulers.EulerAncestralDiscreteScheduler()
    x = np.ones(SHAPE, np.float32)

    def first_step(sample: np.ndarray, generator: Any) -> np.ndarray:
        scheduler.set_timesteps(5)
        return scheduler.step(sample / 2, scheduler.timesteps[0], sample, generator=generator).prev_sample

    both = first_step(x, [Generator(1), Generator(2)])
    assert np.array_equal(both[:1], first_step(x[:1], Generator(1)))
    assert np.array_equal(both[1:], first_step(x[1:], Generator(2)))


def test_a_second_run_does_not_remember_the_first() -> None:
    for name in schedulers.SCHEDULERS:
        ours, theirs = pair(name, **fitting(name, STABLE_DIFFUSION))
        again, _ = pair(name, **fitting(name, STABLE_DIFFUSION))
        ours.set_timesteps(8)
        theirs.set_timesteps(8)
        drive(ours, theirs, forced=False)
        runs = []
        for scheduler in (ours, again):
            scheduler.set_timesteps(5)
            x, noise = np.ones(SHAPE, np.float32), Generator(0)
            for t in scheduler.timesteps:
                x = scheduler.step(scheduler.scale_model_input(x, t) / 2, t, x, generator=noise).prev_sample
            runs.append(x)
        assert np.array_equal(*runs)


def test_schedules_keep_their_documented_numbers() -> None:
    # numerics.md: at 20 steps, and the first noise's scale, which depends on the step count
    ours, theirs = pair("EulerDiscreteScheduler", **STABLE_DIFFUSION, timestep_spacing="leading", steps_offset=1)
    for steps, scale in ((20, 11.0736), (7, 6.6463)):
        ours.set_timesteps(steps)
        theirs.set_timesteps(steps)
        same_schedule(ours, theirs)
        assert abs(ours.init_noise_sigma - scale) < 5e-5  # four decimals are given
