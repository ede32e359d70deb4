"""What a kind of device wants of the engine, as data: the engine asks each of these at its place in one and the same run."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

Run = Callable[..., Any]
"""The graph, as a function of its tensors."""


def as_it_is(module: Any) -> Any:
    """Wrap nothing around the graph."""
    return module


def nothing() -> None:
    """Do nothing before or after a run."""


def no_advice(_: BaseException) -> str | None:
    """Know nothing to do about an error."""
    return None


@dataclass(frozen=True)
class Wishes:
    """What a user may ask of a device; None leaves it to the device's policy."""

    channels_last: bool | None = None
    tf32: bool | None = None
    threads: int | None = None
    attention: str | None = None  # sdpa or sliced
    autocast: str | None = None  # bfloat16 or float16
    compile: str | None = None
    most_rows: int | None = None
    lazy: bool | None = None
    hpu_graphs: bool | None = None
    gaudi_config: str | Path | Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Policy:
    """How a graph is run on one device.

    The engine moves the graph to `device`, slices its attention where that is over more than `slice_above` queries (None:
    never), compiles with `compile_options`, puts `wrap` around it, and from then on calls `before_run`, the graph, and
    `after_run`. `explain` turns what the device raised into what would do. `discard_first` runs the first inputs twice.
    """

    device: str
    most_rows: int | None = None
    pad: bool = False
    one_at_a_time: bool = False
    no_float64: bool = False
    channels_last: bool = False
    slice_above: int | None = None
    tf32: bool | None = None
    threads: int | None = None
    autocast: str | None = None
    compile_options: Mapping[str, Any] | None = None
    discard_first: bool = False
    warm_up_runs: int = 1
    wrap: Callable[[Any], Run] = as_it_is
    before_run: Callable[[], None] = nothing
    after_run: Callable[[], None] = nothing
    explain: Callable[[BaseException], str | None] = no_advice


@dataclass
class Throughput:
    """Runs a second, the first `warm_up_runs` left out: they compile, record graphs and fill caches."""

    warm_up_runs: int = 1
    runs: int = 0
    rows: int = 0
    seconds: float = 0.0
    clock: Callable[[], float] = field(default=time.perf_counter, repr=False)

    def add(self, rows: int, seconds: float) -> None:
        """Count a run of so many rows."""
        self.runs += 1
        if self.runs > self.warm_up_runs:
            self.rows += rows
            self.seconds += seconds

    @property
    def rows_per_second(self) -> float | None:
        """None while there were warm-up runs only."""
        return self.rows / self.seconds if self.seconds else None


def rows_of(tensors: tuple[Tensor, ...]) -> int:
    """The batch of a run: the length of its first input."""
    return int(tensors[0].shape[0]) if tensors and tensors[0].dim() else 1


def compile_options(mode: str | None, *, dynamic: bool | None = None) -> dict[str, Any] | None:
    """What `torch.compile` gets for a mode; None where nothing is compiled."""
    return None if mode is None else {"mode": mode, "dynamic": dynamic}
