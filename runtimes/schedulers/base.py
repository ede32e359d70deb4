"""What a scheduler is to a pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ..noise import Generator
from .config import Config

Array = NDArray[Any]
Generators = Generator | Sequence[Generator] | None
Timestep = float | np.integer[Any] | np.floating[Any]


class Step(NamedTuple):
    """What a step returns: the next, less noisy sample, and the finished sample that the model now predicts."""

    prev_sample: Array
    denoised: Array


@runtime_checkable
class Scheduler(Protocol):
    """How a pipeline uses a scheduler. Samples are (batch, ...) arrays; results come in the model output's dtype.

    >>> from ingot.runtimes.noise import Generator
    >>> from ingot.runtimes.schedulers import DDIMScheduler
    >>> scheduler = DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False)
    >>> scheduler.set_timesteps(4)
    >>> x = Generator(0).randn((1, 4, 8, 8)) * scheduler.init_noise_sigma
    >>> for t in scheduler.timesteps:
    ...     model_output = scheduler.scale_model_input(x, t)  # in place of a model
    ...     x, denoised = scheduler.step(model_output, t, x)
    """

    timesteps: NDArray[Any]  # what the model is called with, in order; int64 or float32; one `step` for each
    order: int  # model calls per step of the solver: with 2, n steps have 2 n - 1 timesteps
    config: Config
    compatibles: ClassVar[tuple[str, ...]]

    @property
    def init_noise_sigma(self) -> float:
        """What the first noise is multiplied with; valid after `set_timesteps`, for it depends on the step count."""
        ...

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        *,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
    ) -> None:
        """Start a run of that many steps, or of the given timesteps or sigmas where the class takes them.

        `mu` shifts the noise levels of a flow by the picture's size, where the config has `use_dynamic_shifting`.
        """
        ...

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Start the run at this place in `timesteps`, as image-to-image does; after `set_timesteps`."""
        ...

    def scale_model_input(self, sample: Array, timestep: Timestep) -> Array:
        """The sample as the model wants to see it."""
        ...

    def step(
        self, model_output: Array, timestep: Timestep, sample: Array, *, generator: Generators = None, eta: float = 0.0
    ) -> Step:
        """From the sample at a timestep to the next. `eta` acts in DDIM and TCD, `generator` where noise is added."""
        ...

    def add_noise(self, original: Array, noise: Array, timesteps: Any) -> Array:
        """The originals, noised as far as `timesteps` (one, or one for each of the batch) says."""
        ...
