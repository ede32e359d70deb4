"""The acceptance grid: every scheduler × spacing × prediction type × step count, held against diffusers.

Both are driven side by side in two ways. *Forced*: every step gets the same random sample and model output, so that one
step's error stands alone. *Chained*: a smooth stand-in for a model, each scheduler on its own trajectory.
"""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from ingot.runtimes import schedulers
from ingot.runtimes.errors import InputError
from ingot.runtimes.noise import Generator
from ingot.runtimes.schedulers.schedules import beta_quantile

SPACINGS = ("linspace", "leading", "trailing")
PREDICTIONS = ("epsilon", "v_prediction", "sample")
STEPS = (1, 2, 4, 7, 20, 50)
STABLE_DIFFUSION = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
SHAPE = (2, 4, 4, 4)

# One step on random input, relative to the largest value in it: numerics.md's acceptance. Worst measured: 6.5e-6 (UniPC,
# whose corrector divides differences of unrelated random predictions by short steps), 2.8e-6 (LMS), 3e-7 elsewhere.
STEP_RTOL = 1e-5
# A whole trajectory, relative to its largest value: one step's tolerance, for the stand-in model neither damps nor
# multiplies errors by more than its slope of 1.2. Worst measured: 1e-5 (LMS with Karras sigmas), 3e-6 elsewhere.
CHAIN_RTOL = 2e-5


def oracle_class(name: str) -> Any:
    """diffusers' class; from its own module, because `diffusers` hides LMS where SciPy is missing."""
    return getattr(importlib.import_module(f"diffusers.schedulers.scheduling_{schedulers.SCHEDULERS[name]}"), name)


def _quad(function: Any, start: Any, end: Any, **_: Any) -> tuple[float]:
    """`scipy.integrate.quad` for cubics: Simpson's rule is exact."""
    low, high = float(start), float(end)
    return ((high - low) / 6 * sum(w * float(function(t)) for w, t in ((1, low), (4, (low + high) / 2), (1, high))),)


@pytest.fixture(scope="module", autouse=True)
def scipy_or_stand_in() -> Iterator[None]:
    """diffusers takes LMS's integrals and beta sigmas from SciPy; without it, exact stand-ins take its place."""
    with pytest.MonkeyPatch.context() as patch:
        if not importlib.util.find_spec("scipy"):
            asked = 1 - np.concatenate([np.linspace(0, 1, steps) for steps in (1, 7, 9, 20, 1000)])
            quantiles = dict(zip(asked.tolist(), beta_quantile(asked, 0.6).tolist(), strict=True))
            stats = SimpleNamespace(beta=SimpleNamespace(ppf=lambda q, *_: quantiles[float(q)]))
            for name in (
                "LMSDiscreteScheduler",
                "EulerDiscreteScheduler",
                "DPMSolverMultistepScheduler",
                "UniPCMultistepScheduler",
            ):
                module = importlib.import_module(oracle_class(name).__module__)
                patch.setattr(module, "is_scipy_available", lambda: True)
                patch.setattr(module, "scipy", SimpleNamespace(stats=stats), raising=False)
                patch.setattr(module, "integrate", SimpleNamespace(quad=_quad), raising=False)
        yield


def pair(name: str, **options: Any) -> tuple[Any, Any]:
    """The same scheduler, ours and diffusers'."""
    return getattr(schedulers, name)(**options), oracle_class(name)(**options)


def both_refuse(name: str, options: Mapping[str, Any], steps: int = 4) -> bool:
    """Whether ours refuses to start a run; if so, diffusers must refuse it too, or yield no numbers."""
    try:
        getattr(schedulers, name)(**options).set_timesteps(steps)
    except InputError:
        try:
            theirs = oracle_class(name)(**options)
            theirs.set_timesteps(steps)
            x = torch.ones(SHAPE)
            for t in theirs.timesteps:
                x = theirs.step(x * 0.5, t, theirs.scale_model_input(x, t)).prev_sample
        except (
            ValueError,
            NotImplementedError,
            IndexError,
            RuntimeError,
            UnboundLocalError,
            TypeError,
            AssertionError,
        ):
            return True
        assert not torch.isfinite(x).all(), f"{name} {options}: refused here, but diffusers computes it"
        return True
    return False


def same_schedule(ours: Any, theirs: Any, *, timestep_rtol: float = 0, sigma_rtol: float = 1e-6) -> None:
    """Timesteps exact, sigmas and the first noise's scale 1e-6 relative (square roots differ by one unit in the last place)."""
    assert ours.timesteps.dtype == theirs.timesteps.numpy().astype(ours.timesteps.dtype).dtype
    np.testing.assert_allclose(ours.timesteps, theirs.timesteps.numpy(), rtol=timestep_rtol, atol=0)
    np.testing.assert_allclose(ours.init_noise_sigma, float(theirs.init_noise_sigma), rtol=sigma_rtol)
    if hasattr(theirs, "sigmas"):
        assert ours.sigmas.dtype == np.float32
        np.testing.assert_allclose(ours.sigmas, theirs.sigmas.numpy(), rtol=sigma_rtol, atol=0)


def stand_in(x: np.ndarray, t: float, channels: int) -> np.ndarray:
    """A model: smooth in sample and timestep, bounded, computed in float64."""
    out = 0.9 * np.sin(1.3 * x.astype(np.float64) + t / 100)
    return np.concatenate([out] * (channels // x.shape[1]), axis=1).astype(x.dtype)


def difference(ours: np.ndarray, theirs: Any) -> float:
    wanted = theirs.float().numpy()
    assert np.isfinite(ours).all()
    assert np.isfinite(wanted).all()
    return float(np.abs(ours.astype(np.float32) - wanted).max() / (1 + np.abs(wanted).max()))


def drive(
    ours: Any,
    theirs: Any,
    *,
    forced: bool,
    start: int = 0,
    channels: int = SHAPE[1],
    dtype: Any = np.float32,
    **step: Any,
) -> float:
    """Run both from `timesteps[start]` with noise from equal seeds; the worst difference, relative to the largest value."""
    rng = np.random.RandomState(0)
    takes = inspect.signature(theirs.step).parameters
    if hasattr(theirs, "sigmas") and (theirs.timesteps[:1] == theirs.timesteps[1:2]).any():
        theirs.set_begin_index(start)  # or it takes the second of two equal first timesteps, and fails at the last
    noise, theirs_noise = Generator(5), {"generator": torch.Generator().manual_seed(5)} if "generator" in takes else {}
    extra = {name: value for name, value in step.items() if name in takes}
    x = (rng.randn(*SHAPE) * ours.init_noise_sigma).astype(dtype)
    other, worst = torch.from_numpy(x.copy()), 0.0
    for t, their_t in zip(ours.timesteps[start:], theirs.timesteps[start:], strict=True):
        if forced:
            x = (rng.randn(*SHAPE) * ours.init_noise_sigma).astype(dtype)
            other = torch.from_numpy(x.copy())
        scaled, their_scaled = ours.scale_model_input(x, t), theirs.scale_model_input(other, their_t)
        worst = max(worst, difference(scaled, their_scaled))
        out = stand_in(scaled, float(t), channels)
        their_out = torch.from_numpy(out.copy() if forced else stand_in(their_scaled.numpy(), float(t), channels))
        stepped, their_step = (
            ours.step(out, t, x, generator=noise, **step),
            theirs.step(their_out, their_t, other, **theirs_noise, **extra),
        )
        x, other = stepped.prev_sample, their_step.prev_sample
        assert x.dtype == stepped.denoised.dtype == dtype
        worst = max(worst, difference(x, other))
        finished = getattr(their_step, "pred_original_sample", getattr(their_step, "denoised", None))
        if finished is not None:
            worst = max(worst, difference(stepped.denoised, finished))
    return worst


def compare(
    name: str,
    options: Mapping[str, Any],
    steps: int | None,
    *,
    step_rtol: float = STEP_RTOL,
    chain_rtol: float = CHAIN_RTOL,
    timestep_rtol: float = 0,
    sigma_rtol: float = 1e-6,
    run: Mapping[str, Any] | None = None,
    **step: Any,
) -> None:
    """Schedule, single steps and a whole trajectory of one combination, at the tolerances above."""
    ours, theirs = pair(name, **options)
    for forced, tolerance in ((True, step_rtol), (False, chain_rtol)):
        for scheduler in (ours, theirs):
            scheduler.set_timesteps(steps, **(run or {}))
        same_schedule(ours, theirs, timestep_rtol=timestep_rtol, sigma_rtol=sigma_rtol)
        worst = drive(ours, theirs, forced=forced, **step)
        assert worst < tolerance, f"{name} {dict(options)}, {steps} steps, forced={forced}: {worst:.2g}"


@pytest.mark.parametrize("name", schedulers.SCHEDULERS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_every_spacing_and_step_count_agrees_with_diffusers(name: str, prediction: str) -> None:
    refused = 0
    for spacing in SPACINGS:
        for steps in STEPS:
            options = {**STABLE_DIFFUSION, "prediction_type": prediction, "timestep_spacing": spacing}
            if both_refuse(name, options, steps):
                refused += 1
            else:
                compare(name, options, steps)
    # the ancestral sampler and PNDM know no `sample`; PNDM's Runge-Kutta start needs four steps
    expected = {("PNDMScheduler", "sample"): 18, ("EulerAncestralDiscreteScheduler", "sample"): 18}
    assert refused == expected.get((name, prediction), 6 if name == "PNDMScheduler" else 0)


@pytest.mark.parametrize("name", schedulers.SCHEDULERS)
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
    if name == "DDPMScheduler":
        kinds += [{"beta_schedule": "laplace"}]
    for options in kinds:
        options = {key: value for key, value in options.items() if key in getattr(schedulers, name).defaults}
        ours, theirs = pair(name, **options)
        assert ours.betas.dtype == ours.alphas_cumprod.dtype == np.float32
        assert np.array_equal(ours.betas, theirs.betas.numpy()), options
        assert np.array_equal(ours.alphas_cumprod, theirs.alphas_cumprod.numpy()), options


def test_the_sigmoid_schedule_agrees_to_the_last_place() -> None:
    ours, theirs = pair("DDPMScheduler", beta_schedule="sigmoid")
    # torch's float32 sigmoid is rounded differently in a quarter of the entries: one or two units in the last place
    np.testing.assert_allclose(ours.betas, theirs.betas.numpy(), rtol=2.5e-7, atol=0)


@pytest.mark.parametrize("name", schedulers.SCHEDULERS)
def test_the_cosine_schedule_agrees_with_diffusers(name: str) -> None:
    # PNDM's first step starts where next to nothing of the signal is left, and divides by its root: 1.4e-4 was
    # measured on a processor with AVX2 alone, where nothing told which operation of torch's it is
    tolerance = 3e-4 if name == "PNDMScheduler" else STEP_RTOL
    for spacing in SPACINGS:
        for steps in (7, 20):
            compare(
                name,
                {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction", "timestep_spacing": spacing},
                steps,
                step_rtol=tolerance,
                chain_rtol=2 * tolerance,
            )


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
