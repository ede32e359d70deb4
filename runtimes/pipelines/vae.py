"""A latent model's autoencoder: pictures to scaled latents and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..engines import Engine, run_in_batches
from ..errors import InputError
from ..images import to_unit
from ..noise import randn_tensor
from .common import Array, Generators

ENCODER, DECODER = "vae_encoder", "vae_decoder"


class VAE:
    """The decoder and, where the bundle has it, the encoder. Latents are those that the denoiser sees.

    latents = (z - shift_factor) * scaling_factor, with z of Kingma & Welling's posterior N(mean, exp(log variance)).
    """

    def __init__(self, engines: Mapping[str, Engine], config: Mapping[str, Any]) -> None:
        self.decoder, self.encoder = engines[DECODER], engines.get(ENCODER)
        self.config = config
        self.factor: int = 2 ** (len(config["block_out_channels"]) - 1)  # pixels to a side of one latent
        self.channels: int = config["latent_channels"]
        self._scale = np.float32(config["scaling_factor"])
        self._shift = np.float32(config.get("shift_factor") or 0)

    def decode(self, latents: Array) -> Array:
        """Pictures (batch, height, width, 3) in 0..1. One at a time, which bounds the decoder's memory."""
        z = (latents / self._scale + self._shift).astype(np.float32)
        return to_unit(run_in_batches(self.decoder, {"latent_sample": z}, most=1)["sample"])

    def encode(self, pixels: Array, generators: Generators | None) -> Array:
        """Latents of pixels (batch, 3, height, width) in -1..1, drawn from the posterior; its mean without `generators`.

        Raises InputError for a bundle without an encoder.
        """
        if self.encoder is None:
            raise InputError(
                f"a picture was given, and this bundle has no {ENCODER} to read it: export the whole pipeline"
            )
        # one at a time, as diffusers does where each picture has its own generator
        out = run_in_batches(self.encoder, {"sample": pixels.astype(np.float32)}, most=1)
        if "latent_parameters" not in out:  # a tiny autoencoder's latents are certain
            return (out["latent_sample"].astype(np.float32) - self._shift) * self._scale
        mean, log_variance = np.split(out["latent_parameters"].astype(np.float32), 2, axis=1)
        z = mean
        if generators is not None:
            deviation = np.exp(np.float32(0.5) * np.clip(log_variance, -30, 20))
            z = mean + deviation * randn_tensor(mean.shape, generators)
        return (z - self._shift) * self._scale
