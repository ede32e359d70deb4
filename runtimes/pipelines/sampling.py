"""The sampling loop that all pipelines share: the scheduler asks the model at each timestep and moves the sample on."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ..schedulers import Scheduler
from .call import Run
from .common import Array, Generators, State, check_count, check_number
from .start import Start

Predict = Callable[[int, Array, float], Array]
"""The model's answer at a step, to the scaled sample, at a timestep."""


def scheduled(scheduler: Scheduler, call: Run, **options: Any) -> Scheduler:
    """A copy of the scheduler with the call's timesteps; `options` are what else its `set_timesteps` is given."""
    check_number("eta", call.eta)
    own = copy.deepcopy(scheduler)
    count = call.num_inference_steps
    count = None if call.custom and count is None else check_count("num_inference_steps", count)
    own.set_timesteps(count, timesteps=call.timesteps, sigmas=call.sigmas, **options)
    return own


def sample(
    state: State, scheduler: Scheduler, start: Start, generators: Generators, eta: float, predict: Predict
) -> Iterator[State]:
    """Yield the one `state` after every step."""
    ended = state.latents.copy()
    for i, t in enumerate(scheduler.timesteps[start.begin : start.end]):
        state.changed = not np.array_equal(state.latents, ended, equal_nan=True)
        answer = predict(i, scheduler.scale_model_input(state.latents, t), float(t))
        stepped = scheduler.step(answer, t, state.latents, generator=generators, eta=eta)
        state.step, state.timestep = i, float(t)
        state.latents, state.denoised = stepped.prev_sample, stepped.denoised
        if start.blend is not None:
            state.latents = start.blend(i, state.latents)
        ended = state.latents.copy()  # the caller may write into them
        yield state
