"""At which steps DeepCache runs the whole denoiser, and what it keeps for the others.

    uniform:      {i : i mod N = 0}
    non-uniform:  {0} and int(l^p) + c for the ceil(T/N) - 1 points l that part (-c)^(1/p) to (T - c)^(1/p) evenly,

where p comes down in steps of 0.02 until these are ceil(T/N) different steps. The whole denoiser runs most often around
step c, where features change most. Roots of negative numbers are complex, and of a power the real part counts, as in the
authors' code. Source: Ma, Fang and Wang, "DeepCache: Accelerating Diffusion Models for Free", 2023 (arXiv 2312.00858),
"Non-uniform 1:N Inference", and their `sample_from_quad_center`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import InputError
from .common import Array, check_count, check_number

Schedule = str | Sequence[int]
POWER = 1.4  # and c = 15 of 50 steps: the authors' for Stable Diffusion at N = 5
CENTER = 0.3


def full_steps(
    steps: int, interval: object, schedule: object = "uniform", center: object = None, power: object = POWER
) -> frozenset[int]:
    """The steps, of `steps`, at which the whole denoiser runs. Step 0 is always one. Raises InputError."""
    every = check_count("cache_interval", interval)
    middle = round(CENTER * steps) if center is None else check_count("cache_center", center)
    steepness = check_number("cache_power", power)
    if steepness <= 1:
        raise InputError(f"cache_power must be above 1, not {power}; {POWER} is usual")
    if isinstance(schedule, np.ndarray):
        schedule = schedule.tolist()
    if schedule == "uniform":
        return frozenset(range(0, steps, every))
    if schedule == "non-uniform":
        if middle >= steps:
            raise InputError(f"cache_center={middle} lies behind the last of {steps} steps; {steps - 1} would do")
        return _non_uniform(steps, -(-steps // every), middle, steepness)
    if isinstance(schedule, str) or not isinstance(schedule, Sequence):
        raise InputError(f"cache_schedule must be 'uniform', 'non-uniform' or a list of steps, not {schedule!r}")
    wrong = [step for step in schedule if isinstance(step, bool) or step not in range(steps)]
    if wrong:
        raise InputError(f"cache_schedule names the steps {wrong}, and there are the steps 0 to {steps - 1}")
    return frozenset({0, *map(int, schedule)})


def _non_uniform(steps: int, count: int, center: int, power: float) -> frozenset[int]:
    falling = power
    while falling > 1:
        first, last = (complex(end) ** (1 / falling) for end in (-center, steps - center))
        points = first + (last - first) * np.arange(count + 1) / count
        values = np.unique((points**falling).real.astype(np.int32))
        found = frozenset({0, *(int(value) + center for value in values[1:-1])})
        if len(found) == count and found <= set(range(steps)):
            return found
        falling -= 0.02
    raise InputError(
        f"no {count} different steps of {steps} lie around cache_center={center}: another center, a larger cache_interval or "
        "cache_schedule='uniform' would do"
    )


Row = tuple[Any, ...]
"""What an answer of guidance is asked with; compared by identity."""


@dataclass
class Features:
    """The deep features of the last whole run, and the rows that they belong to, one behind the other."""

    value: Array | None = None  # (rows * batch, channels, height, width) of the branch's level
    rows: tuple[Row, ...] = ()

    def of(self, rows: tuple[Row, ...]) -> Array | None:
        """The features of these rows, if there are some of each: guidance that stops needs its half no more, one that starts
        lacks it. Rows that are asked with the same are told apart by their order alone, so all of them must be there."""
        if self.value is None:
            return None
        if len(rows) == len(self.rows) and all(map(_same, rows, self.rows)):
            return self.value
        kept = [[i for i, own in enumerate(self.rows) if _same(own, row)] for row in rows]
        if any(len(places) != 1 for places in kept):
            return None
        parts = np.split(self.value, len(self.rows))
        return np.concatenate([parts[place] for (place,) in kept])


def _same(one: Row, other: Row) -> bool:
    return len(one) == len(other) and all(a is b for a, b in zip(one, other, strict=True))
