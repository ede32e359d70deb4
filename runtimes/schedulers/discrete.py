"""What all schedulers here share: options, betas, the place in the schedule, and how much noise there is at it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, unknown
from . import schedules
from .base import Array, Timestep
from .config import Config, Source, read, resolve
from .parameterization import Level, Space, alpha_sigma, level, mix
from .steps import unit_variance

COMPATIBLES = (
    "DDIMScheduler",
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "EDMEulerScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "UniPCMultistepScheduler",
)


class DiscreteScheduler:
    """The part that all schedulers share. A class states its options and its `step`, and where it was not trained at
    discrete timesteps with betas, what it was trained with (`_trained`).

    `DDIMScheduler(beta_schedule="scaled_linear")` and `DDIMScheduler.from_config(folder, clip_sample=False)` both make
    one; an option that does not fit raises InputError saying what would.
    """

    defaults: ClassVar[Mapping[str, Any]]
    choices: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    aliases: ClassVar[Mapping[str, Mapping[Any, Any]]] = {}
    compatibles: ClassVar[tuple[str, ...]] = COMPATIBLES
    custom_schedules: ClassVar[tuple[str, ...]] = ()
    # How x = alpha x0 + sigma eps is kept: by "timestep" in alphas_cumprod, or by `sigmas` with alpha = 1 ("exploding"),
    # with unit variance ("preserving") or with alpha = 1 - sigma ("flow"). A config's use_flow_sigmas goes before it.
    space: ClassVar[Space | Literal["timestep"]] = "timestep"
    order: int = 1
    clips: ClassVar[bool] = True  # whether a config's clip_sample acts
    mu_may_idle: ClassVar[bool] = (
        False  # whether a `mu` is let pass without use_dynamic_shifting: FLUX always gives one
    )
    noised_by_timestep: ClassVar[bool] = False  # whether `add_noise` goes by alphas_cumprod, though the run has sigmas

    betas: schedules.Floats
    alphas_cumprod: schedules.Floats
    timesteps: NDArray[Any]
    sigmas: NDArray[np.float32]
    _mu: float | None  # of the run: how far its noise levels are shifted
    _begin_index: int | None
    _step_index: int | None

    def __init__(self, **options: Any) -> None:
        self.config = resolve(type(self).__name__, self.defaults, self.choices, self.aliases, options)
        self._check_options()
        self.num_inference_steps: int | None = None
        self._mu = None
        self._trained()
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
        """Start the run at this place in `timesteps`; after `set_timesteps`.

        Raises InputError for a place inside a step, where a scheduler calls the model `order` times for each.
        """
        self._check_entry(begin_index)
        self._begin_index = begin_index

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        *,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
    ) -> None:
        """Start a run: of so many steps, or along custom `timesteps` or `sigmas` where `custom_schedules` names them.

        `mu` is how far the picture's size moves the noise levels, for the option `use_dynamic_shifting`. Raises
        InputError unless exactly one of the three is given, and for values that do not make a schedule.
        """
        if mu is not None and not self.mu_may_idle and not self._option("use_dynamic_shifting", False):
            why = "False here" if "use_dynamic_shifting" in self.defaults else "not among its options"
            raise InputError(
                f"{type(self).__name__} does not take mu: it acts with use_dynamic_shifting, which is {why}"
            )
        self._mu = mu
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
        return unit_variance(sample, self._sigma_seen(timestep))

    def add_noise(self, original: Array, noise: Array, timesteps: Any) -> Array:
        """The originals (batch, ...), noised as far as `timesteps` (one, or one for each of the batch) says."""
        steps = np.atleast_1d(timesteps)
        if self.space == "timestep" or self.noised_by_timestep:
            bars = np.array([self._alpha_bar(int(t)) for t in steps])
            return mix(original, noise, np.sqrt(bars), np.sqrt(1 - bars))
        return mix(original, noise, *alpha_sigma(self.sigmas[[self._noise_index(t) for t in steps]], self._space))

    # what a class fills in -----------------------------------------------------------------------------------------

    def _check_options(self) -> None:
        """Raise InputError for options that do not go together."""

    def _trained(self) -> None:
        """Set `timesteps` (and `sigmas`) to those of training: here the ones that the config's betas make."""
        rescaled = self._option("rescale_betas_zero_snr", False)
        self.betas = schedules.betas(self.config)
        if rescaled:
            self.betas = schedules.zero_terminal_snr(self.betas)
        self.alphas_cumprod = schedules.cumprod(1 - self.betas)
        self.timesteps = np.arange(self.config.num_train_timesteps)[::-1].copy()
        if self.space != "timestep":
            if rescaled:
                self.alphas_cumprod[-1] = schedules.LAST_ALPHA_BAR
            self.sigmas = np.append(schedules.sigmas_of(self.alphas_cumprod)[::-1], np.float32(0))

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

    @property
    def _space(self) -> Space:
        if self._option("use_flow_sigmas", False):
            return "flow"
        return "preserving" if self.space == "timestep" else self.space

    def _option(self, name: str, otherwise: Any) -> Any:
        """An option's value, if this class has it: a config carries those of other classes too, which must not act."""
        return self.config[name] if name in self.defaults else otherwise

    def _level(self, place: int) -> Level:
        """alpha, sigma and lambda at a place in `sigmas`."""
        return level(self.sigmas[place], self._space)

    def _sigma_seen(self, timestep: Timestep) -> Any:
        """The noise level at which the model is due to be called."""
        return self.sigmas[self._index(timestep)]

    def _custom(self, name: str, values: Sequence[float]) -> NDArray[np.float64]:
        if name not in self.custom_schedules:
            takes = ", ".join(("num_inference_steps", *self.custom_schedules))
            raise InputError(f"{type(self).__name__} does not take {name}; it takes {takes}")
        try:
            array = np.asarray(values, dtype=np.float64)
        except (TypeError, ValueError):
            array = np.empty(0)
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
        bounded = self.clips and self._option("clip_sample", False) and not self._option("thresholding", False)
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
            self._check_entry(self._step_index)
        if self._step_index >= len(self.timesteps):
            raise InputError(f"all {len(self.timesteps)} steps were taken; call set_timesteps before another run")
        return self._step_index

    def _lookup(self, timestep: Timestep) -> int:
        """The place of a timestep; of several the second, so that a run entered half-way does not skip a sigma."""
        places = np.flatnonzero(self.timesteps == timestep)
        if not len(places):
            raise InputError(f"timestep {timestep} is not in this run; take one of scheduler.timesteps")
        return int(places[min(1, len(places) - 1)])

    def _check_entry(self, place: int) -> None:
        if place % self.order:
            raise InputError(
                f"{type(self).__name__} calls the model {self.order} times in a step: a run begins at one of "
                f"timesteps[::{self.order}], not at place {place}"
            )

    def _noise_index(self, timestep: Timestep) -> int:
        if self._begin_index is None:
            return self._lookup(timestep)
        return self._begin_index if self._step_index is None else self._step_index

    def _alpha_bar(self, timestep: int) -> Any:
        """alpha-bar of a training timestep; of one before the first, the config's final value."""
        if timestep >= len(self.alphas_cumprod):
            raise InputError(f"timestep {timestep} is past the last of training, {len(self.alphas_cumprod) - 1}")
        if timestep < 0:
            return np.float32(1) if self._option("set_alpha_to_one", True) else self.alphas_cumprod[0]
        return self.alphas_cumprod[timestep]
