"""Where a loop starts: from noise, from a noised picture, or from one of which a part is to be painted anew."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..errors import InputError
from ..noise import randn_tensor
from ..schedulers import Scheduler
from .common import Array, Generators, check_number
from .vae import VAE

Blend = Callable[[int, Array], Array]


@dataclass(frozen=True)
class Start:
    """The first latents, their place in the scheduler's timesteps, channels that the denoiser gets behind the latents', and
    what is done to the latents after each step."""

    latents: Array
    begin: int = 0
    channels: Array | None = None
    blend: Blend | None = None


def begin_at(scheduler: Scheduler, steps: int, strength: object) -> int:
    """The first timestep of a run over the last `strength` of its steps. Raises InputError for a share outside 0..1, or
    when no step is left."""
    share = check_number("strength", strength)
    if not 0 <= share <= 1:
        raise InputError(f"strength must be a share from 0 to 1, not {share}")
    left = min(int(steps * share), steps)
    if not left:
        raise InputError(
            f"strength={share} leaves none of {steps} steps: more steps, or a strength of at least {1 / steps:.3g}, would do"
        )
    first = (steps - left) * scheduler.order
    scheduler.set_begin_index(first)
    return first


def from_noise(shape: tuple[int, ...], given: Array | None, generators: Generators, sigma: float) -> Start:
    """Noise of the scheduler's first strength. Raises InputError for given latents of another shape."""
    if given is not None and np.shape(given) != shape:
        raise InputError(f"latents has shape {np.shape(given)}, not {shape}")
    noise = randn_tensor(shape, generators) if given is None else np.asarray(given, dtype=np.float32)
    return Start(noise * np.float32(sigma))


def from_picture(
    pixels: Array, vae: VAE, scheduler: Scheduler, batch: int, begin: int, generators: Generators
) -> Start:
    """A picture's latents, noised as far as the step where the loop begins: SDEdit (Meng et al. 2021)."""
    latents = tiled(encoded(pixels, vae, batch, generators), batch, "image")
    noise = randn_tensor(latents.shape, generators)
    return Start(scheduler.add_noise(latents, noise, scheduler.timesteps[begin : begin + 1]), begin)


def encoded(pixels: Array, vae: VAE, batch: int, generators: Generators) -> Array:
    """Scaled latents; one for each of the batch where each has a generator of its own to draw with."""
    if isinstance(generators, list):
        pixels = tiled(pixels, batch, "image")
    return vae.encode(pixels, generators)


def tiled(array: Array, batch: int, name: str) -> Array:
    """One for each picture, repeated as a whole as diffusers does. Raises InputError where they do not divide the batch."""
    if batch % len(array):
        raise InputError(f"{len(array)} of {name} for {batch} pictures; give one, or one for each")
    return np.concatenate([array] * (batch // len(array)))
