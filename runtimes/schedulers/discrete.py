"""What all schedulers here share: options, betas, the place in the schedule, and how much noise there is at it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, unknown
from ..noise import randn_tensor
from . import schedules
from .base import Array, Generators, Step, Timestep
from .config import Config, Source, read, resolve
from .parameterization import alpha_sigma, mix

COMPATIBLES = (
    "DDIMScheduler",
    "DDPMScheduler",
    "DPMSolverMultistepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "UniPCMultistepScheduler",
)


class DiscreteScheduler:
    """The part that schedulers with trained, discrete timesteps share. A class states its options and its `step`.

    `DDIMScheduler(beta_schedule="scaled_linear")` and `DDIMScheduler.from_config(folder, clip_sample=False)` both make
    one; an option that does not fit raises InputError saying what would.
    """

    defaults: ClassVar[Mapping[str, Any]]
    choices: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    aliases: ClassVar[Mapping[str, Mapping[Any, Any]]] = {}
    compatibles: ClassVar[tuple[str, ...]] = COMPATIBLES
    custom_schedules: ClassVar[tuple[str, ...]] = ()
    # How x = alpha x0 + sigma eps is kept: by "timestep" in alphas_cumprod, or by `sigmas` with alpha = 1 ("exploding")
    # or with unit variance ("preserving").
    space: ClassVar[Literal["timestep", "exploding", "preserving"]] = "timestep"
    order: int = 1

    _begin_index: int | None
    _step_index: int | None

    def __init__(self, **options: Any) -> None:
        self.config = resolve(type(self).__name__, self.defaults, self.choices, self.aliases, options)
        self._check_options()
        self.betas = schedules.betas(self.config)
        rescaled = self.config.get("rescale_betas_zero_snr", False)
        if rescaled:
            self.betas = schedules.zero_terminal_snr(self.betas)
        self.alphas_cumprod = schedules.cumprod(1 - self.betas)
        train = self.config.num_train_timesteps
        self.timesteps: NDArray[Any] = np.arange(train)[::-1].copy()
        self.num_inference_steps: int | None = None
        if self.space != "timestep":
            if rescaled:
                self.alphas_cumprod[-1] = schedules.LAST_ALPHA_BAR
            self.sigmas = np.append(schedules.sigmas_of(self.alphas_cumprod)[::-1], np.float32(0))
        self._restart()

    @classmethod
    def from_config(cls, config: Source, **overrides: Any) -> Self:
        """A scheduler from diffusers' `scheduler_config.json` (a folder, a file) or any scheduler's config.

        Options that the config lacks take this class's defaults; those of other classes are carried along, unused.
        Raises InputError for a known option with a value that is not supported, or an override that is no option.
        """
        values = read(config)
        for name in overrides:
            if name not in cls.defaults:
                raise unknown(f"option of {cls.__name__}", name, cls.defaults)
        scheduler = cls(**{name: value for name, value in values.items() if name in cls.defaults} | overrides)
        scheduler.config = Config({**values, **scheduler.config})
        return scheduler

    @property
    def init_noise_sigma(self) -> float:
        """What the first noise is multiplied with; valid after `set_timesteps`."""
        if self.space != "exploding":
            return 1.0
        most = self.sigmas.max()
        return float(most if self.config.timestep_spacing in ("linspace", "trailing") else np.sqrt(most**2 + 1))

    @property
    def begin_index(self) -> int | None:
        """Where the run starts in `timesteps`, if `set_begin_index` said so."""
        return self._begin_index

    @property
    def step_index(self) -> int | None:
        """The place in `timesteps` of the next step; None before the first."""
        return self._step_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Start the run at this place in `timesteps`; after `set_timesteps`."""
        self._begin_index = begin_index

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        *,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
    ) -> None:
        """Start a run: of so many steps, or along custom `timesteps` or `sigmas` where `custom_schedules` names them.

        Raises InputError unless exactly one of the three is given, and for values that do not make a schedule.
        """
        every = {"num_inference_steps": num_inference_steps, "timesteps": timesteps, "sigmas": sigmas}
        given: dict[str, Any] = {name: value for name, value in every.items() if value is not None}
        if len(given) != 1:
            raise InputError(f"give exactly one of {', '.join(every)}; got {', '.join(given) or 'none'}")
        name, value = given.popitem()
        if name == "num_inference_steps":
            self._schedule(schedules.check_steps(value, self.config.num_train_timesteps))
        else:
            self._schedule_along(name, self._custom(name, value))
        self._restart()

    def scale_model_input(self, sample: Array, timestep: Timestep) -> Array:
        """The sample as the model wants to see it: of unit variance."""
        if self.space != "exploding":
            return sample
        sigma = self.sigmas[self._index(timestep)]
        return np.asarray(sample.astype(np.float32) / np.sqrt(sigma**2 + 1)).astype(sample.dtype)

    def add_noise(self, original: Array, noise: Array, timesteps: Any) -> Array:
        """The originals (batch, ...), noised as far as `timesteps` (one, or one for each of the batch) says."""
        steps = np.atleast_1d(timesteps)
        if self.space == "timestep":
            bars = np.array([self._alpha_bar(int(t)) for t in steps])
            return mix(original, noise, np.sqrt(bars), np.sqrt(1 - bars))
        sigma = self.sigmas[[self._noise_index(t) for t in steps]]
        alpha, sigma = (np.ones_like(sigma), sigma) if self.space == "exploding" else alpha_sigma(sigma)
        return mix(original, noise, alpha, sigma)

    # what a class fills in -----------------------------------------------------------------------------------------

    def _check_options(self) -> None:
        """Raise InputError for options that do not go together."""

    def _schedule(self, steps: int) -> None:
        """Set `timesteps` (and `sigmas`) for a number of steps."""
        raise NotImplementedError

    def _schedule_along(self, name: str, values: NDArray[np.float64]) -> None:
        """Set `timesteps` (and `sigmas`) from custom values of one kind."""
        raise NotImplementedError

    def _restart(self) -> None:
        """Forget the run before."""
        self._begin_index = self._step_index = None

    # what a class builds on ----------------------------------------------------------------------------------------

    def _custom(self, name: str, values: Sequence[float]) -> NDArray[np.float64]:
        if name not in self.custom_schedules:
            takes = ", ".join(("num_inference_steps", *self.custom_schedules))
            raise InputError(f"{type(self).__name__} does not take {name}; it takes {takes}")
        array = np.asarray(values, dtype=np.float64)
        if array.ndim != 1 or not array.size or not np.isfinite(array).all() or (array < 0).any():
            raise InputError(f"{name} must be a list of numbers, none below 0, not {values!r}")
        return array

    def _falling(self, timesteps: NDArray[np.float64]) -> NDArray[np.int64]:
        """Custom timesteps as int64. Raises InputError unless they fall and begin below `num_train_timesteps`."""
        whole = timesteps.astype(np.int64)
        if (np.diff(whole) >= 0).any() or whole[0] >= self.config.num_train_timesteps:
            most = self.config.num_train_timesteps
            raise InputError(f"timesteps must fall, from below {most}; got {timesteps.tolist()}")
        return whole

    def _spaced(self, steps: int, **kind: Any) -> Array:
        config = self.config
        return schedules.spaced(config.timestep_spacing, steps, config.num_train_timesteps, config.steps_offset, **kind)

    @property
    def _steps(self) -> int:
        if self.num_inference_steps is None:
            raise InputError(f"{type(self).__name__} does not know its number of steps; call set_timesteps before step")
        return self.num_inference_steps

    def _use_whole_timesteps(self, timesteps: NDArray[Any]) -> None:
        """Take timesteps that index `alphas_cumprod`. Raises InputError where a run along them could not be computed."""
        whole = timesteps.astype(np.int64)
        if whole.max() >= self.config.num_train_timesteps or whole.min() < 0:
            raise InputError(
                f"timesteps reach from {whole.min()} to {whole.max()}, past those of training; "
                "change steps_offset or the number of steps"
            )
        bounded = self.config.get("clip_sample", False) and not self.config.thresholding
        if self.config.prediction_type == "epsilon" and self.alphas_cumprod[whole[0]] == 0 and not bounded:
            raise InputError(
                "rescale_betas_zero_snr leaves no signal at the first timestep, where a model of noise (prediction_type "
                "'epsilon') predicts nothing; a v_prediction model or timestep_spacing 'leading' would do"
            )
        self.timesteps = whole
        self.num_inference_steps = len(whole)

    def _index(self, timestep: Timestep) -> int:
        """The place of the step that is due: where the run stands, or at its start where the caller enters it."""
        if self._step_index is None and self._begin_index is not None:
            self._step_index = self._begin_index
        elif self._step_index is None:
            # At the very start the first place, even where rounding made the first two timesteps equal: there diffusers
            # (0.42) takes the second, and runs out of sigmas at the end.
            self._step_index = 0 if timestep == self.timesteps[0] else self._lookup(timestep)
        if self._step_index >= len(self.timesteps):
            raise InputError(f"all {len(self.timesteps)} steps were taken; call set_timesteps before another run")
        return self._step_index

    def _lookup(self, timestep: Timestep) -> int:
        """The place of a timestep; of several the second, so that a run entered half-way does not skip a sigma."""
        places = np.flatnonzero(self.timesteps == timestep)
        if not len(places):
            raise InputError(f"timestep {timestep} is not in this run; take one of scheduler.timesteps")
        return int(places[min(1, len(places) - 1)])

    def _noise_index(self, timestep: Timestep) -> int:
        if self._begin_index is None:
            return self._lookup(timestep)
        return self._begin_index if self._step_index is None else self._step_index

    def _alpha_bar(self, timestep: int) -> Any:
        """alpha-bar of a training timestep; of one before the first, the config's final value."""
        if timestep >= len(self.alphas_cumprod):
            raise InputError(f"timestep {timestep} is past the last of training, {len(self.alphas_cumprod) - 1}")
        if timestep < 0:
            return np.float32(1) if self.config.get("set_alpha_to_one", True) else self.alphas_cumprod[0]
        return self.alphas_cumprod[timestep]


def working(model_output: Array, sample: Array) -> tuple[Array, Array]:
    """Both in float32, which steps are computed in. Raises InputError when their shapes differ."""
    if model_output.shape != sample.shape:
        raise InputError(f"model output and sample differ in shape: {model_output.shape} and {sample.shape}")
    return model_output.astype(np.float32), sample.astype(np.float32)


def stepped(prev_sample: Array, denoised: Array, model_output: Array) -> Step:
    """A step's result in the model output's dtype."""
    return Step(prev_sample.astype(model_output.dtype), denoised.astype(model_output.dtype))


def draw(like: Array, generator: Generators) -> Array:
    """Noise for a model output, drawn in its dtype as diffusers does, in float32."""
    return randn_tensor(like.shape, generator, like.dtype).astype(np.float32)
