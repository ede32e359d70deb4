"""What the controls have in common: a call's pictures and numbers, one or one for each."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..errors import InputError
from .common import Array, check_number


class Batch(NamedTuple):
    """What a call makes: pictures of `size`, (height, width), so many of each of so many prompts."""

    size: tuple[int, int]
    prompts: int
    per_prompt: int


def of_each(name: str, value: object, default: float, count: int) -> list[float]:
    """A number for each of `count` models. Raises InputError for what is no number, or a list of another length."""
    if value is None:
        value = default
    given = list(value) if isinstance(value, list | tuple) else [value] * count
    if len(given) != count:
        raise InputError(f"{name} has {len(given)} numbers for {count} models; give one, or one for each")
    return [check_number(name, one) for one in given]


def repeated(pictures: Array, batch: Batch) -> Array:
    """A control picture for each picture of the batch. Raises InputError unless there is one, or one for each prompt."""
    require_for_prompts(pictures, batch)
    times = batch.per_prompt if len(pictures) == batch.prompts else batch.prompts * batch.per_prompt
    return np.repeat(pictures, times, axis=0)


def require_for_prompts(pictures: Array, batch: Batch) -> None:
    """Raise InputError unless there is one picture, or one for each prompt."""
    if len(pictures) not in (1, batch.prompts):
        raise InputError(f"{len(pictures)} control pictures for {batch.prompts} prompts; give one, or one for each")
