"""Schedulers driven beside diffusers' own, as installed.

*Forced*: every step gets the same random sample and model output, so that one step's error stands alone. *Chained*: a
smooth stand-in for a model, each scheduler on its own trajectory.
"""

from __future__ import annotations

import copy
import importlib
import inspect
import logging
from collections.abc import Iterator, Mapping
from itertools import pairwise
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
STABLE_DIFFUSION = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
SHAPE = (2, 4, 4, 4)

# One step on random input, relative to the largest value in it: numerics.md's acceptance. Worst measured: 6.5e-6 (UniPC,
# whose corrector divides differences of unrelated random predictions by short steps), 2.8e-6 (LMS), 3e-7 elsewhere.
STEP_RTOL = 1e-5
# A whole trajectory, relative to its largest value: one step's tolerance, for the stand-in model neither damps nor
# multiplies errors by more than its slope of 1.2. Worst measured: 1e-5 (LMS with Karras sigmas), 3e-6 elsewhere.
CHAIN_RTOL = 2e-5


# Timesteps that are logarithms of noise levels, or lie half-way between two such: relative and absolute differences. Worst
# measured: 1.2e-7 of the timestep (KDPM2, a unit in the last place), 6e-8 (EDM, whose logarithms are near 0), and 0.01 where
# a step of the ancestral KDPM2 spans three decades, for which diffusers takes the root of a difference that rounding spoils.
LOGARITHMIC = {
    "KDPM2DiscreteScheduler": (1e-6, 1e-4),
    "KDPM2AncestralDiscreteScheduler": (1e-6, 2e-2),
    "EDMEulerScheduler": (1e-6, 1e-6),
    "EDMDPMSolverMultistepScheduler": (1e-6, 1e-6),
    "CMStochasticIterativeScheduler": (1e-6, 1e-4),
}


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
    logging.getLogger("diffusers").setLevel(logging.ERROR)  # it warns of every other option
    with pytest.MonkeyPatch.context() as patch:
        if not importlib.util.find_spec("scipy"):
            asked = 1 - np.concatenate([np.linspace(0, 1, steps) for steps in (1, 7, 9, 20, 1000)])
            quantiles = dict(zip(asked.tolist(), beta_quantile(asked, 0.6).tolist(), strict=True))
            stats = SimpleNamespace(beta=SimpleNamespace(ppf=lambda q, *_: quantiles[float(q)]))
            for name in having("use_beta_sigmas"):
                module = importlib.import_module(oracle_class(name).__module__)
                patch.setattr(module, "is_scipy_available", lambda: True)
                patch.setattr(module, "scipy", SimpleNamespace(stats=stats), raising=False)
                patch.setattr(module, "integrate", SimpleNamespace(quad=_quad), raising=False)
        yield


def options_of(name: str) -> Mapping[str, Any]:
    """The options of a class and their defaults."""
    defaults: Mapping[str, Any] = getattr(schedulers, name).defaults
    return defaults


def having(option: str) -> list[str]:
    """The classes with this option."""
    return [name for name in schedulers.SCHEDULERS if option in options_of(name)]


def fitting(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the options that the class has; unCLIP's knows one beta schedule only."""
    known = set(options_of(name)) - ({"beta_schedule"} if name == "UnCLIPScheduler" else set())
    return {key: value for key, value in options.items() if key in known}


def pair(name: str, **options: Any) -> tuple[Any, Any]:
    """The same scheduler, ours and diffusers'."""
    return getattr(schedulers, name)(**options), oracle(name, options)


_made: dict[str, Any] = {}


def oracle(name: str, options: Mapping[str, Any]) -> Any:
    """diffusers' scheduler, a copy of the first one made so: KDPM2's constructors take a tenth of a second."""
    key = f"{name} {dict(options)!r}"
    if key not in _made:
        _made[key] = oracle_class(name)(**options)
    return copy.deepcopy(_made[key])


def both_refuse(name: str, options: Mapping[str, Any], steps: int = 4) -> bool:
    """Whether ours refuses to start a run; if so, diffusers must refuse it too, or yield no numbers."""
    try:
        getattr(schedulers, name)(**options).set_timesteps(steps)
    except InputError:
        try:
            theirs = oracle(name, options)
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
            ZeroDivisionError,
            TypeError,
            AssertionError,
        ):
            return True
        assert not torch.isfinite(x).all(), f"{name} {options}: refused here, but diffusers computes it"
        return True
    return False


def same_timesteps(ours: Any, theirs: Any, rtol: float = 0) -> None:
    """Equal, or where they come from logarithms of noise levels within a few units of float32's last place."""
    rtol, atol = (rtol, 0) if rtol else LOGARITHMIC.get(type(ours).__name__, (0, 0))
    assert ours.timesteps.dtype in (np.int64, np.float32)
    assert ours.timesteps.dtype.kind == theirs.timesteps.numpy().dtype.kind
    np.testing.assert_allclose(ours.timesteps, theirs.timesteps.numpy(), rtol=rtol, atol=atol)


def same_schedule(ours: Any, theirs: Any, *, timestep_rtol: float = 0, sigma_rtol: float = 1e-6) -> None:
    """Timesteps exact, sigmas and the first noise's scale 1e-6 relative (square roots differ by one unit in the last place)."""
    same_timesteps(ours, theirs, timestep_rtol)
    np.testing.assert_allclose(ours.init_noise_sigma, float(getattr(theirs, "init_noise_sigma", 1)), rtol=sigma_rtol)
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
    if hasattr(theirs, "sigmas") and (theirs.timesteps == theirs.timesteps[0]).sum() > 1:
        theirs.set_begin_index(start)  # or it takes the second of two equal first timesteps, and fails at the last
    noise, theirs_noise = Generator(5), {"generator": torch.Generator().manual_seed(5)} if "generator" in takes else {}
    extra = {name: value for name, value in step.items() if name in takes}
    following = dict(pairwise(theirs.timesteps.tolist()))
    x = (rng.randn(*SHAPE) * ours.init_noise_sigma).astype(dtype)
    other, worst = torch.from_numpy(x.copy()), 0.0
    for t, their_t in zip(ours.timesteps[start:], theirs.timesteps[start:], strict=True):
        if forced:
            x = (rng.randn(*SHAPE) * ours.init_noise_sigma).astype(dtype)
            other = torch.from_numpy(x.copy())
        scaled, their_scaled = ours.scale_model_input(x, t), other
        if hasattr(theirs, "scale_model_input"):  # the flow matching ones have none
            their_scaled = theirs.scale_model_input(other, their_t)
        worst = max(worst, difference(scaled, their_scaled))
        out = stand_in(scaled, float(t), channels)
        their_out = torch.from_numpy(out.copy() if forced else stand_in(their_scaled.numpy(), float(t), channels))
        if "prev_timestep" in takes:  # which unCLIP's pipelines tell it
            extra["prev_timestep"] = following.get(int(their_t))
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


def start_both(ours: Any, theirs: Any, steps: int | None, run: Mapping[str, Any]) -> None:
    ours.set_timesteps(steps, **run)
    if "sigmas" in run and type(ours).__name__ == "EDMEulerScheduler":  # which wants a tensor
        run = {**run, "sigmas": torch.tensor(run["sigmas"], dtype=torch.float64)}
    theirs.set_timesteps(steps, **run)


def compare(
    name: str,
    options: Mapping[str, Any],
    steps: int | None,
    *,
    step_rtol: float = STEP_RTOL,
    chain_rtol: float | None = CHAIN_RTOL,
    timestep_rtol: float = 0,
    sigma_rtol: float = 1e-6,
    run: Mapping[str, Any] | None = None,
    **step: Any,
) -> None:
    """Schedule, single steps and a whole trajectory of one combination, at the tolerances above; no trajectory for None."""
    ours, theirs = pair(name, **options)
    for forced, tolerance in ((True, step_rtol), (False, chain_rtol)):
        if tolerance is None:
            continue
        start_both(ours, theirs, steps, run or {})
        same_schedule(ours, theirs, timestep_rtol=timestep_rtol, sigma_rtol=sigma_rtol)
        worst = drive(ours, theirs, forced=forced, **step)
        assert worst < tolerance, f"{name} {dict(options)}, {steps} steps, forced={forced}: {worst:.2g}"
