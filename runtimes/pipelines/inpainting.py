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
from .start import COLOURS, Blend, Span, Start, Starting, encoded, given_latents, require_readable, tiled
from .vae import VAE


def from_masked(
    call: Call, pixels: Array, mask: Array, vae: VAE, scheduler: Scheduler, shape: tuple[int, ...], generators: Generators,
    channels: int, span: Span,
) -> Starting:  # fmt: skip
    """Where inpainting starts: `pixels` (batch, 3, height, width) in -1..1, `mask` (batch, 1, height, width) of 0 and 1.

    The draws come in diffusers' order: the picture's posterior, noise, the masked picture's. Raises InputError for a denoiser
    that neither takes the latents alone nor with mask and masked picture, and for pictures, masks and latents that do not fit
    the batch.
    """
    trained = 2 * vae.channels + 1
    if channels not in (vae.channels, trained):
        raise InputError(
            f"this model's denoiser takes {channels} channels: inpainting wants {vae.channels}, or {trained} of a checkpoint made for it"
        )
    if pixels.shape[1] != COLOURS and channels == trained:
        raise InputError("image was given as latents, which cannot be masked for this model: give the picture itself")
    whole, batch = call.strength == 1.0, shape[0]
    given = given_latents(call.latents, shape)
    require_readable(pixels, vae, batch)
    small = tiled(mask[:, :, :: vae.factor, :: vae.factor], batch, "mask_image")
    if len(pixels) != 1 and len(mask) not in (1, len(pixels)):
        raise InputError(f"{len(mask)} of mask_image for {len(pixels)} of image; give one, or one for each")

    def start() -> Start:
        picture = None
        if channels == vae.channels or not span.noised or (given is None and not whole):
            picture = _drawn(pixels, vae, batch, generators)
        noise, latents = _noised(given, shape, picture, whole, scheduler, span, generators)
        if pixels.shape[1] == COLOURS:  # drawn for every model, so that later draws are diffusers'
            kept = _drawn(pixels * (mask < 0.5), vae, batch, generators)
        if channels == trained:
            return Start(latents, span.begin, span.end, channels=np.concatenate([small, kept], axis=1))
        assert picture is not None
        return Start(latents, span.begin, span.end, blend=_blend(picture, noise, small, scheduler, span))

    return start


def _drawn(pixels: Array, vae: VAE, batch: int, generators: Generators) -> Array:
    """Latents as diffusers' inpainting draws them: each picture once, with the first generators, then one for each of the
    batch. A VAE's latents_mean and latents_std count here as everywhere; diffusers (0.42) forgets them when it inpaints."""
    own = generators[: len(pixels)] if isinstance(generators, list) else generators
    return tiled(encoded(pixels, vae, len(pixels), own), batch, "image")


def _noised(
    given: Array | None, shape: tuple[int, ...], picture: Array | None, whole: bool, scheduler: Scheduler, span: Span,
    generators: Generators,
) -> tuple[Array, Array]:  # fmt: skip
    """The noise, and the latents of the first step."""
    sigma = np.float32(scheduler.init_noise_sigma)
    if picture is not None and not span.noised:
        return randn_tensor(shape, generators), picture
    if given is not None:
        return given, given * sigma
    noise = randn_tensor(shape, generators)
    if whole or picture is None:
        return noise, noise * sigma
    return noise, scheduler.add_noise(picture, noise, scheduler.timesteps[span.begin : span.begin + 1])


def _blend(picture: Array, noise: Array, mask: Array, scheduler: Scheduler, span: Span) -> Blend:
    timesteps = scheduler.timesteps[span.begin : span.end]

    def blend(step: int, latents: Array) -> Array:
        outside = picture
        if step < len(timesteps) - 1:
            outside = scheduler.add_noise(picture, noise, timesteps[step + 1 : step + 2])
        mixed: Array = (1 - mask) * outside + mask * latents
        return mixed

    return blend
