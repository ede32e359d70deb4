"""Where a loop starts: from noise, from a noised picture, or from one of which a part is to be painted anew."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..errors import InputError
from ..noise import randn_tensor
from ..schedulers import Scheduler
from .common import Array, Generators, check_number
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


def given_latents(given: Array, shape: tuple[int, ...]) -> Array:
    """What a call brings for the first latents. Raises InputError for another shape."""
    if np.shape(given) != shape:
        raise InputError(f"latents has shape {np.shape(given)}, not {shape}")
    return np.asarray(given, dtype=np.float32)


def from_noise(
    shape: tuple[int, ...], given: Array | None, generators: Generators, sigma: float, end: int | None = None
) -> Start:
    """Noise of the scheduler's first strength. Raises InputError for given latents of another shape."""
    noise = randn_tensor(shape, generators) if given is None else given_latents(given, shape)
    return Start(noise * np.float32(sigma), end=end)


def from_picture(
    pixels: Array, vae: VAE, scheduler: Scheduler, batch: int, span: Span, generators: Generators
) -> Start:
    """A picture's latents, noised as far as the step where the loop begins: SDEdit (Meng et al. 2021)."""
    latents = tiled(encoded(pixels, vae, batch, generators), batch, "image")
    if not span.noised:
        return Start(latents, span.begin, span.end)
    noise = randn_tensor(latents.shape, generators)
    noised = scheduler.add_noise(latents, noise, scheduler.timesteps[span.begin : span.begin + 1])
    return Start(noised, span.begin, span.end)


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
    if batch % len(array):
        raise InputError(f"{len(array)} of {name} for {batch} pictures; give one, or one for each")
    return np.concatenate([array] * (batch // len(array)))
