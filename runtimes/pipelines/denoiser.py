"""The denoiser of a loop: guidance in its interval, DeepCache's two graphs, controls, one answer a step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np

from ..engines import Arrays, Engine, run_in_batches
from ..errors import InputError
from .common import Array, State, check_number, guidance_embedding, guide, timestep_input
from .deep_cache import POWER, Features, Schedule, full_steps

SHALLOW = "unet_shallow"
FEATURES = "deep_features"
EMBEDS = "encoder_hidden_states"


@dataclass(frozen=True)
class Acceleration:
    """How a call spares work: see `StableDiffusion.steps`."""

    guidance_start: float = 0.0
    guidance_end: float = 1.0
    cache_interval: int = 1
    cache_schedule: Schedule = "uniform"
    cache_center: int | None = None
    cache_power: float = POWER


# Inputs that are added to what the denoiser computes, so that zeros do nothing; their names begin so.
ADDED = ("down_block_additional_residual", "mid_block_additional_residual", "down_intrablock_additional_residual")


class Control(Protocol):
    """Something that steers the denoiser by further inputs: a ControlNet, an adapter."""

    def inputs(self, step: int, steps: int, given: Arrays, rows: int) -> Arrays:
        """The denoiser's further inputs for a step of `steps`, by name.

        `given` is what it gets otherwise: `sample` and `encoder_hidden_states` of all rows of guidance one behind the other,
        `timestep`, and the conditions; `rows` is 2 where guidance doubles the batch, the unguided half first, else 1.
        """
        ...


@dataclass(frozen=True)
class Plan:
    """What is computed at each step of one call: guidance from `start` to `end`, in shares of the steps; the whole denoiser
    at the `full` steps; what the denoiser is given behind the latents' channels, and what `controls` say."""

    steps: int
    start: float
    end: float
    full: frozenset[int]
    features: Features = field(default_factory=Features)
    channels: Array | None = None  # (batch, more channels, height, width)
    controls: tuple[Control, ...] = ()
    zeros: Arrays = field(default_factory=dict)

    def guides(self, step: int) -> bool:
        """Whether guidance is on: diffusers' rule for `control_guidance_start` and `control_guidance_end`."""
        return step / self.steps >= self.start and (step + 1) / self.steps <= self.end


class Denoiser:
    """A UNet and, where the bundle has it, its shallow form. State of a call lies in its `Plan`."""

    role: ClassVar[str] = "unet"
    sample: ClassVar[str] = "sample"  # what its graph calls the latents
    answer: ClassVar[str] = "out_sample"  # and what it predicts
    timestep_unit: ClassVar[float] = 1.0  # of training's timesteps

    def __init__(self, engines: Mapping[str, Engine], condition_width: int | None) -> None:
        self.model = engines[self.role]
        self._reads = any(spec.name == EMBEDS for spec in self.model.signature.inputs)
        self.shallow = engines.get(SHALLOW)
        self.weights = object()  # another one when the weights have changed
        # of the guidance embedding of a distilled UNet (LCM), which takes guidance as an input, not a batch
        self.condition_width = condition_width

    def plan(self, steps: int, how: Acceleration) -> Plan:
        """The plan of a call of so many steps. Raises InputError for what cannot be, or not with this bundle."""
        start, end = (check_number(f"guidance_{n}", getattr(how, f"guidance_{n}")) for n in ("start", "end"))
        if not 0 <= start < end <= 1:
            raise InputError(
                f"guidance_start={start} and guidance_end={end} must be shares of the steps, from 0 to 1, the first below the second"
            )
        if self.condition_width and (start, end) != (0, 1):
            raise InputError("guidance_start and guidance_end are for guidance by a doubled batch; this model has none")
        full = full_steps(steps, how.cache_interval, how.cache_schedule, how.cache_center, how.cache_power)
        if len(full) < steps and self.shallow is None:
            raise InputError(
                f"cache_interval and cache_schedule need DeepCache's {SHALLOW}, which this bundle does not have: export it "
                "with --deep-cache 0 (deep_cache=0)"
            )
        return Plan(steps, start, end, full)

    def guided(self, state: State, plan: Plan, step: int) -> bool:
        """Whether a step takes a negative prompt's half of the batch."""
        return state.guidance_scale > 1 and not self.condition_width and plan.guides(step)

    def predict(self, state: State, plan: Plan, step: int, sample: Array, timestep: float) -> Array:
        """The guided prediction for a scaled sample: (batch, channels, height, width)."""
        rows = self.rows(state, plan, step)
        given: Arrays = {
            self.sample: np.concatenate([_joined(sample, row.channels) for row in rows]),
            "timestep": timestep_input(self.model, timestep / self.timestep_unit, len(rows) * len(sample)),
        }
        if self._reads:
            given[EMBEDS] = np.concatenate([row.embeds for row in rows])
        for name in rows[0].others:
            given[name] = np.concatenate([row.others[name] for row in rows])
        if self.condition_width:
            given["timestep_cond"] = guidance_embedding(
                state.guidance_scale, self.condition_width, len(given[self.sample])
            )
        for control in plan.controls:
            given |= control.inputs(step, plan.steps, given, len(rows))
        given |= self.further(state)
        given |= self._idle(given, plan)
        if state.changed:  # by the caller, half-way: what is kept is of another picture
            plan.features.value = None
        # features are of these very arrays, and of these weights
        scale = state.guidance_scale if self.condition_width else None
        batch = tuple((self.weights, scale, row.embeds, *row.others.values()) for row in rows)
        out = self._run(given, plan, step, batch)[self.answer].astype(np.float32)
        answers = np.split(out, len(rows))
        return answers[0] if len(rows) == 1 else self.guide(answers, state)

    def _idle(self, given: Arrays, plan: Plan) -> Arrays:
        """Zeros for what is added by controls where none of them says anything: one graph serves with and without."""
        found: Arrays = {}
        for spec in self.model.signature.inputs:
            if spec.name in given or not spec.name.startswith(ADDED):
                continue
            shape = self.model.signature.shape_beside(spec.name, given)
            if spec.name not in plan.zeros or plan.zeros[spec.name].shape != shape:
                plan.zeros[spec.name] = np.zeros(shape, spec.dtype)
            found[spec.name] = plan.zeros[spec.name]
        return found

    def further(self, state: State) -> Arrays:  # noqa: ARG002  # for those that have some
        """Inputs that are one for the whole batch, by name."""
        return {}

    def rows(self, state: State, plan: Plan, step: int) -> list[Row]:
        """What is asked in one step: the unguided half of the batch first, where there is guidance."""
        rows = [Row(state.prompt_embeds, state.conditions, plan.channels)]
        negative = state.negative_prompt_embeds
        if negative is not None and self.guided(state, plan, step):
            rows.insert(0, Row(negative, state.negative_conditions, plan.channels))
        return rows

    def guide(self, answers: list[Array], state: State) -> Array:
        """One prediction of the answers to `rows`."""
        unguided, guided = answers
        return guide(unguided, guided, state.guidance_scale, state.guidance_rescale)

    def _run(self, inputs: Arrays, plan: Plan, step: int, rows: tuple[tuple[Any, ...], ...]) -> Arrays:
        """The shallow graph where the plan says so and there are features of these very rows, else the whole one."""
        features = None if step in plan.full else plan.features.of(rows)
        if features is not None and self.shallow is not None:
            given = {**inputs, FEATURES: features}
            return run_in_batches(self.shallow, {s.name: given[s.name] for s in self.shallow.signature.inputs})
        out = run_in_batches(self.model, inputs)
        if FEATURES in out:
            plan.features.value, plan.features.rows = out[FEATURES], rows
        return out


class Row(NamedTuple):
    """One of the answers that guidance puts together: what the denoiser is given for it beside the sample."""

    embeds: Array
    others: dict[str, Array]
    channels: Array | None


def _joined(sample: Array, channels: Array | None) -> Array:
    return sample if channels is None else np.concatenate([sample, channels.astype(sample.dtype)], axis=1)
