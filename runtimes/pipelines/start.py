"""Where a loop starts: from noise, from a noised picture, or from one of which a part is to be painted anew."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..errors import InputError
from ..noise import randn_tensor
from ..schedulers import Scheduler
from .common import Array, Generators, check_array, check_number
from .vae import VAE

COLOURS = 3
Blend = Callable[[int, Array], Array]


class Span(NamedTuple):
    """The part of the scheduler's timesteps that a loop runs, and whether a picture is noised for the first of them."""

    begin: int = 0
    end: int | None = None
    noised: bool = True


@dataclass(frozen=True)
class Start:
    """The first latents, the part of the scheduler's timesteps to run, channels that the denoiser gets behind the latents',
    and what is done to the latents after each step."""

    latents: Array
    begin: int = 0
    end: int | None = None
    channels: Array | None = None
    blend: Blend | None = None


Starting = Callable[[], Start]
"""What makes the start of a call whose arguments are checked: only this draws noise and runs graphs."""


def begin_at(scheduler: Scheduler, steps: int, strength: object, *, begun: bool = False) -> int:
    """The first timestep of a run over the last `strength` of its steps; with `begun` the step that the share ends in counts.
    Raises InputError for a share outside 0..1, or when no step is left."""
    share = check_number("strength", strength)
    if not 0 <= share <= 1:
        raise InputError(f"strength must be a share from 0 to 1, not {share}")
    left = steps - int(steps - steps * share) if begun else min(int(steps * share), steps)
    if not left:
        raise InputError(
            f"strength={share} leaves none of {steps} steps: more steps, or a strength of at least {1 / steps:.3g}, would do"
        )
    first = (steps - left) * scheduler.order
    if first >= len(scheduler.timesteps):
        raise InputError(f"strength={share} leaves none of the timesteps that were given: a larger strength would do")
    scheduler.set_begin_index(first)
    return first


def is_latents(image: object, channels: int) -> bool:
    """Whether what was given for a picture are latents (batch, channels, height, width), as another pipeline leaves them."""
    if not isinstance(image, np.ndarray) or image.ndim != 4:
        return False
    return image.shape[1] == channels and image.shape[-1] not in (1, COLOURS)


def given_latents(given: Array | None, shape: tuple[int, ...]) -> Array | None:
    """What a call brings for the first latents, if it does. Raises InputError for another shape."""
    if given is None:
        return None
    array = check_array("latents", given)
    if array.shape != shape:
        raise InputError(f"latents has shape {array.shape}, not {shape}")
    return array.astype(np.float32)


def from_noise(
    shape: tuple[int, ...], given: Array | None, generators: Generators, sigma: float, end: int | None = None
) -> Start:
    """Noise of the scheduler's first strength. Raises InputError for given latents of another shape."""
    latents = given_latents(given, shape)
    noise = randn_tensor(shape, generators) if latents is None else latents
    return Start(noise * np.float32(sigma), end=end)


def from_picture(
    pixels: Array, vae: VAE, scheduler: Scheduler, batch: int, span: Span, generators: Generators
) -> Starting:
    """A picture's latents, noised as far as the step where the loop begins: SDEdit (Meng et al. 2021).

    Raises InputError for pictures that do not divide the batch, and where nothing reads them.
    """
    require_readable(pixels, vae, batch)

    def start() -> Start:
        latents = tiled(encoded(pixels, vae, batch, generators), batch, "image")
        if not span.noised:
            return Start(latents, span.begin, span.end)
        noise = randn_tensor(latents.shape, generators)
        noised = scheduler.add_noise(latents, noise, scheduler.timesteps[span.begin : span.begin + 1])
        return Start(noised, span.begin, span.end)

    return start


def require_readable(pixels: Array, vae: VAE, batch: int) -> None:
    """Raise InputError for pictures that do not divide the batch, and for a bundle that cannot read them."""
    require_share(len(pixels), batch, "image")
    if pixels.shape[1] == COLOURS:
        vae.require_encoder()


def encoded(pixels: Array, vae: VAE, batch: int, generators: Generators) -> Array:
    """Scaled latents; one for each of the batch where each has a generator of its own to draw with.

    `pixels` have three channels; an array of another number of them is of latents already.
    """
    if pixels.shape[1] != COLOURS:
        return pixels.astype(np.float32)
    if isinstance(generators, list):
        pixels = tiled(pixels, batch, "image")
    return vae.encode(pixels, generators)


def tiled(array: Array, batch: int, name: str) -> Array:
    """One for each picture, repeated as a whole as diffusers does. Raises InputError where they do not divide the batch."""
    require_share(len(array), batch, name)
    return np.concatenate([array] * (batch // len(array)))


def require_share(count: int, batch: int, name: str) -> None:
    """Raise InputError where so many do not divide the batch."""
    if batch % count:
        raise InputError(f"{count} of {name} for {batch} pictures; give one, or one for each")
