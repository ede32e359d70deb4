"""What every pipeline is: engines by role, a scheduler, a loop that yields, and the call around it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from tqdm import tqdm

from ..engines import Engine
from ..errors import InputError
from ..schedulers import Scheduler
from ..schedulers.discrete import DiscreteScheduler
from ..tokenizer import Tokenizer
from .common import Engines, Output, State, check_changeable, require_engines

OUTPUT_TYPES = ("pil", "np", "latent")
Callback = Callable[["Pipeline", int, float, dict[str, Any]], dict[str, Any] | None]


@dataclass(frozen=True)
class Parts:
    """What a bundle holds for a pipeline: `config` is the pipeline's own, `configs` and `extras` (files) by role."""

    class_name: str  # diffusers' class whose rules the pipeline follows
    engines: Mapping[str, Engine]
    tokenizers: Mapping[str, Tokenizer]
    scheduler: Scheduler
    configs: Mapping[str, Mapping[str, Any]]
    config: Mapping[str, Any] = field(default_factory=dict)
    processors: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    extras: Mapping[str, Mapping[str, Path]] = field(default_factory=dict)


class Pipeline(Engines):
    """diffusers' pipelines around engines: same arguments, same seeds, same pictures, no PyTorch.

    One instance may serve several threads: a call keeps its state to itself, the scheduler's included.
    """

    roles: tuple[str, ...] = ()
    optional_roles: tuple[str, ...] = ()
    lazy_roles: tuple[str, ...] = ()  # optional ones that are opened when they are first needed
    output_types: tuple[str, ...] = OUTPUT_TYPES

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts.engines)
        require_engines(parts.engines, self.roles, parts.class_name)
        self.class_name = parts.class_name
        self.scheduler = parts.scheduler

    @property
    def scheduler(self) -> Scheduler:
        """The sampler; assign another, `EulerDiscreteScheduler.from_config(pipe.scheduler.config)`, to exchange it."""
        return self._scheduler

    @scheduler.setter
    def scheduler(self, scheduler: Scheduler) -> None:
        if not isinstance(scheduler, DiscreteScheduler):  # diffusers' own have the same methods, and want tensors
            kind = f"{type(scheduler).__module__}.{type(scheduler).__name__}"
            raise InputError(f"a scheduler of ingot.runtimes.schedulers is needed, not {kind}")
        self._scheduler = scheduler

    def __call__(
        self: Self,
        prompt: str | Sequence[str] | None = None,
        *,
        progress: bool = True,
        output_type: str = "pil",
        callback_on_step_end: Callback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        **arguments: Any,
    ) -> Output:
        """Pictures for a prompt or several: `Output.images`.

        Takes what `steps` takes, and: `progress` shows a bar; `output_type` is "pil", "np" for an array
        (batch, height, width, 3) in 0..1, or "latent"; `callback_on_step_end(pipe, step, timestep, kwargs)` as in diffusers,
        with arrays for tensors. Raises InputError for arguments that cannot be used, before any graph runs.

        >>> import ingot                                                # doctest: +SKIP
        >>> pipe = ingot.load("shapes-bundle")                          # doctest: +SKIP
        >>> pipe("a large red ring on a blue background", seed=0).images[0].save("ring.png")  # doctest: +SKIP
        """
        if output_type not in self.output_types:
            raise InputError(f"unknown output_type {output_type!r}; available: {', '.join(self.output_types)}")
        check_changeable(callback_on_step_end_tensor_inputs)
        run = self.steps(prompt, **arguments)
        state = next(run)  # arguments are checked here, so that no bar stands over an error
        with tqdm(total=state.num_steps, disable=not progress) as bar:
            while True:
                bar.update()
                if callback_on_step_end is not None:
                    wanted = {name: getattr(state, name) for name in callback_on_step_end_tensor_inputs}
                    changed = callback_on_step_end(self, state.step, state.timestep, wanted) or {}
                    check_changeable(changed)
                    for name, value in changed.items():
                        setattr(state, name, value)
                following = next(run, None)
                if following is None:
                    break
                state = following
        return self.finish(state, output_type)

    def steps(self, prompt: str | Sequence[str] | None = None, **arguments: Any) -> Iterator[State]:
        """The loop: yields its `State` after every step. Raises InputError before the first."""
        raise NotImplementedError

    def finish(self, state: State, output_type: str) -> Output:
        """What a call returns for the last state."""
        raise NotImplementedError
