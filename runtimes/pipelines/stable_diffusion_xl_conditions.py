"""What Stable Diffusion XL is told beside the prompt: sizes, a crop, how beautiful; and of which steps it does which.

    time_ids = (original height, width, crop top, left, target height, width)      base, inpainting
    time_ids = (original height, width, crop top, left, aesthetic score)           refiner

Source: Podell et al., "SDXL: Improving Latent Diffusion Models for High-Resolution Image Synthesis", 2023 (arXiv 2307.01952),
section 2.2; the shares of an ensemble of denoisers as in Balaji et al. 2022 (arXiv 2211.01324).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import InputError
from ..schedulers import Scheduler
from .call import TEXT_TO_IMAGE, Call
from .common import Array, check_number

AESTHETIC_IDS = 5  # of a model that is told how beautiful the picture is; six of one that is told the target's size
SCORE, NEGATIVE_SCORE = 6.0, 2.5  # diffusers' defaults
Pair = Sequence[int]


@dataclass(kw_only=True)
class XLCall(Call):
    """What `steps` takes. Sizes are (height, width) in pixels, crops (top, left); None means the picture's own size, or what
    the prompt's half of the batch has."""

    prompt_2: Any = None
    negative_prompt_2: Any = None
    pooled_prompt_embeds: Array | None = None
    negative_pooled_prompt_embeds: Array | None = None
    original_size: Pair | None = None
    crops_coords_top_left: Pair = (0, 0)
    target_size: Pair | None = None
    negative_original_size: Pair | None = None
    negative_crops_coords_top_left: Pair = (0, 0)
    negative_target_size: Pair | None = None
    aesthetic_score: float | None = None
    negative_aesthetic_score: float | None = None
    denoising_start: float | None = None
    denoising_end: float | None = None


def check_ids(call: XLCall, ids: int) -> None:
    """Raise InputError for sizes and scores that do not fit a model of so many time ids."""
    sizes = ("original_size", "crops_coords_top_left", "target_size")
    for name in (*sizes, *(f"negative_{name}" for name in sizes)):
        value = getattr(call, name)
        if value is not None or "crops" in name:
            _check_pair(name, value)
    for name in ("aesthetic_score", "negative_aesthetic_score"):
        value = getattr(call, name)
        if value is not None:
            check_number(name, value)
            if ids != AESTHETIC_IDS:
                raise InputError(
                    f"{name}={value}: this model was not trained with aesthetic scores, as a refiner is; leave it out"
                )
    lone = (call.negative_original_size is None) != (call.negative_target_size is None)
    if lone and ids != AESTHETIC_IDS and call.task == TEXT_TO_IMAGE:
        raise InputError("negative_original_size and negative_target_size go together: give both or neither")


def time_ids(call: XLCall, size: tuple[int, int], ids: int) -> tuple[Array, Array]:
    """The numbers of a prompt and of its negative one, (1, ids) each, for a picture of `size`, (height, width) in pixels.

    Which of the prompt's own stand in for negative ones that were not given is diffusers' rule, which differs by task: beside
    a picture, a model without scores takes the prompt's crop for both, even where a negative one was given. Negative sizes of
    a text-to-image batch hold here for every picture; diffusers (0.42) deals them out to the rows in turn.
    """
    original, target = call.original_size or size, call.target_size or size
    crops, negative_crops = call.crops_coords_top_left, call.negative_crops_coords_top_left
    negative_original = call.negative_original_size or original
    if ids == AESTHETIC_IDS:
        scores = call.aesthetic_score, call.negative_aesthetic_score
        score, low = (default if s is None else s for s, default in zip(scores, (SCORE, NEGATIVE_SCORE), strict=True))
        return _row(*original, *crops, score), _row(*negative_original, *negative_crops, low)
    positive = _row(*original, *crops, *target)
    if call.task == TEXT_TO_IMAGE:
        if call.negative_original_size is None:
            return positive, positive
    else:
        negative_crops = crops
    return positive, _row(*negative_original, *negative_crops, *(call.negative_target_size or target))


def first_step(call: XLCall, scheduler: Scheduler) -> int:
    """The place in the timesteps where a denoiser takes over that starts at the share `denoising_start`."""
    share = _check_share("denoising_start", call.denoising_start)
    left = int((np.asarray(scheduler.timesteps) < _cut(scheduler, share)).sum())
    if scheduler.order == 2 and left % 2 == 0:
        left += 1  # every step but the first is two timesteps: do not begin between them
    if not left:
        raise InputError(
            f"denoising_start={share} leaves none of {call.count(scheduler)} steps: more steps, or a smaller share, would do"
        )
    return len(scheduler.timesteps) - left


def last_step(call: XLCall, scheduler: Scheduler, begin: int) -> int | None:
    """The place in the timesteps behind the last one of a denoiser that ends at the share `denoising_end`; None for all."""
    if call.denoising_end is None or call.denoising_end == 1:
        return None
    share = _check_share("denoising_end", call.denoising_end)
    if call.denoising_start is not None and call.denoising_start >= share:
        raise InputError(f"denoising_start={call.denoising_start} must be below denoising_end={share}")
    done = int((np.asarray(scheduler.timesteps[begin:]) >= _cut(scheduler, share)).sum())
    if not done:
        raise InputError(
            f"denoising_end={share} leaves none of {call.count(scheduler)} steps: more steps, or a larger share, would do"
        )
    return begin + done


def _cut(scheduler: Scheduler, share: float) -> int:
    """The training timestep at a share of the whole way."""
    trained: int = scheduler.config.num_train_timesteps
    return round(trained - share * trained)


def _check_share(name: str, value: object) -> float:
    share = check_number(name, value)
    if not 0 < share < 1:
        raise InputError(f"{name} must be a share of the denoising between 0 and 1, not {share}")
    return share


def _check_pair(name: str, value: Any) -> None:
    if (
        not isinstance(value, list | tuple)
        or len(value) != 2
        or not all(isinstance(one, int | np.integer) and not isinstance(one, bool) for one in value)
    ):
        kind = "(top, left)" if "crops" in name else "(height, width)"
        raise InputError(f"{name} must be a pair {kind} of whole numbers, not {value!r}")


def _row(*numbers: float) -> Array:
    return np.array([numbers], dtype=np.float32)
