"""What every pipeline is: engines by role, a scheduler, a loop that yields, and the call around it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import GeneratorType
from typing import Any, ClassVar, Self

from ..engines import Engine
from ..errors import InputError
from ..schedulers import Scheduler
from ..schedulers.discrete import DiscreteScheduler
from ..tokenizer import Tokenizer
from .call import Run
from .common import Engines, Output, State, check_changeable, require_engines

OUTPUT_TYPES = ("pil", "np", "latent")
Callback = Callable[["Pipeline", int, float, dict[str, Any]], dict[str, Any] | None]


@dataclass(frozen=True)
class Parts:
    """What a bundle holds for a pipeline: `config` is the pipeline's own, `configs` and `extras` (files) by role, and
    `schedulers` the configs of further ones."""

    class_name: str  # diffusers' class whose rules the pipeline follows
    engines: Mapping[str, Engine]
    tokenizers: Mapping[str, Tokenizer]
    scheduler: Scheduler
    configs: Mapping[str, Mapping[str, Any]]
    config: Mapping[str, Any] = field(default_factory=dict)
    schedulers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
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
    makes: ClassVar[str] = "pictures"  # or embeddings
    call_type: ClassVar[type[Run]]  # its fields are what `steps` takes
    _interrupted = 0  # how often runs were told to end

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

    @property
    def _interrupt(self) -> bool:
        """diffusers' switch. Calls compare how often it was set, so that one that begins does not set it back for others."""
        return False

    @_interrupt.setter
    def _interrupt(self, stop: bool) -> None:
        self._interrupted += bool(stop)

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
        with arrays for tensors. After any step the run ends, and what there is becomes the picture, when the callback returns
        {"interrupt": True}; `pipe._interrupt = True`, as in diffusers and from any thread, ends all runs that are under way.
        Raises InputError for arguments that cannot be used, before any graph runs.

        >>> import ingot                                                # doctest: +SKIP
        >>> pipe = ingot.load("shapes-bundle")                          # doctest: +SKIP
        >>> pipe("a large red ring on a blue background", seed=0).images[0].save("ring.png")  # doctest: +SKIP
        """
        if output_type not in self.output_types:
            raise InputError(f"unknown output_type {output_type!r}; available: {', '.join(self.output_types)}")
        check_changeable(callback_on_step_end_tensor_inputs)
        begun = self._interrupted
        run = self.steps(prompt, **arguments)
        try:  # a loop that its caller broke off must not keep others waiting
            state = next(run)  # arguments are checked here, so that no bar stands over an error
            with _bar(state.num_steps) if progress else nullcontext() as bar:
                while True:
                    if bar is not None:
                        bar.update()
                    if callback_on_step_end is not None:
                        wanted = {name: getattr(state, name) for name in callback_on_step_end_tensor_inputs}
                        changed = dict(callback_on_step_end(self, state.step, state.timestep, wanted) or {})
                        stop = changed.pop("interrupt", False)
                        check_changeable(changed)
                        for name, value in changed.items():
                            setattr(state, name, value)
                        if stop:
                            break
                    following = next(run, None) if self._interrupted == begun else None
                    if following is None:
                        break
                    state = following
        finally:
            _closed(run)
        return self.finish(state, output_type)

    def steps(self, prompt: str | Sequence[str] | None = None, **arguments: Any) -> Iterator[State]:
        """The loop: yields its `State` after every step. Raises InputError before the first."""
        raise NotImplementedError

    def finish(self, state: State, output_type: str) -> Output:
        """What a call returns for the last state."""
        raise NotImplementedError


def _bar(steps: int) -> Any:
    from tqdm import tqdm  # its import takes as long as that of all pipelines

    return tqdm(total=steps)


def _closed(run: Iterator[State]) -> None:
    if isinstance(run, GeneratorType):
        run.close()
