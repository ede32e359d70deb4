"""Inpainting: a part of a picture is painted anew, the rest kept.

A checkpoint trained for it takes the mask and the masked picture's latents as further channels (Rombach et al. 2022, 4.5). With
any other, what lies outside of the mask is put back after each step, noised as the next step wants it:

    x = (1 - m) add_noise(z, eps, t_next) + m x,    as in RePaint (Lugmayr et al. 2022) without its resampling.
"""

from __future__ import annotations

import numpy as np

from ..errors import InputError
from ..noise import randn_tensor
from ..schedulers import Scheduler
from .call import Call
from .common import Array, Generators
from .start import Blend, Start, begin_at, encoded, tiled
from .vae import VAE


def from_masked(
    call: Call, pixels: Array, mask: Array, vae: VAE, scheduler: Scheduler, shape: tuple[int, ...], generators: Generators,
    channels: int,
) -> Start:  # fmt: skip
    """Where inpainting starts: `pixels` (batch, 3, height, width) in -1..1, `mask` (batch, 1, height, width) of 0 and 1.

    The draws come in diffusers' order: the picture's posterior, noise, the masked picture's. Raises InputError for a denoiser
    that neither takes the latents alone nor with mask and masked picture.
    """
    trained = 2 * vae.channels + 1
    if channels not in (vae.channels, trained):
        raise InputError(
            f"this model's denoiser takes {channels} channels: inpainting wants {vae.channels}, or {trained} of a checkpoint made for it"
        )
    begin = begin_at(scheduler, call.count(scheduler), call.strength)
    whole = call.strength == 1.0
    batch = shape[0]
    picture = None
    if channels == vae.channels or (call.latents is None and not whole):
        picture = tiled(encoded(pixels, vae, batch, generators), batch, "image")
    noise, latents = _noised(call.latents, shape, picture, whole, scheduler, begin, generators)
    kept = tiled(encoded(pixels * (mask < 0.5), vae, batch, generators), batch, "image")
    small = tiled(mask[:, :, :: vae.factor, :: vae.factor], batch, "mask_image")
    if channels == trained:
        return Start(latents, begin, channels=np.concatenate([small, kept], axis=1))
    assert picture is not None
    return Start(latents, begin, blend=_blend(picture, noise, small, scheduler, begin))


def _noised(
    given: Array | None, shape: tuple[int, ...], picture: Array | None, whole: bool, scheduler: Scheduler, begin: int,
    generators: Generators,
) -> tuple[Array, Array]:  # fmt: skip
    """The noise, and the latents of the first step."""
    sigma = np.float32(scheduler.init_noise_sigma)
    if given is not None:
        if np.shape(given) != shape:
            raise InputError(f"latents has shape {np.shape(given)}, not {shape}")
        noise = np.asarray(given, dtype=np.float32)
        return noise, noise * sigma
    noise = randn_tensor(shape, generators)
    if whole or picture is None:
        return noise, noise * sigma
    return noise, scheduler.add_noise(picture, noise, scheduler.timesteps[begin : begin + 1])


def _blend(picture: Array, noise: Array, mask: Array, scheduler: Scheduler, begin: int) -> Blend:
    timesteps = scheduler.timesteps[begin:]

    def blend(step: int, latents: Array) -> Array:
        outside = picture
        if step < len(timesteps) - 1:
            outside = scheduler.add_noise(picture, noise, timesteps[step + 1 : step + 2])
        mixed: Array = (1 - mask) * outside + mask * latents
        return mixed

    return blend
