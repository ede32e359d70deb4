"""A latent model's autoencoder: pictures to scaled latents and back."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import numpy as np

from ..engines import Engine, run_in_batches
from ..errors import InputError
from ..images import to_unit
from ..noise import randn_tensor
from .common import Array, Generators, check_size, fixed_size
from .tiling import Tiling

ENCODER, DECODER = "vae_encoder", "vae_decoder"
TILE = 64  # latents to a side, where a VAE does not say what it was trained at: diffusers' for the tiny autoencoder


class VAE:
    """The decoder and, where the bundle has it, the encoder. Latents are those that the denoiser sees.

    latents = (z - shift_factor) * scaling_factor, with z of Kingma & Welling's posterior N(mean, exp(log variance)); a VAE
    whose config has latents_mean and latents_std, one for each channel, has (z - mean) * scaling_factor / std in its place.
    """

    def __init__(self, engines: Mapping[str, Engine], config: Mapping[str, Any]) -> None:
        self.decoder, self.encoder = engines[DECODER], engines.get(ENCODER)
        self.config = config
        self.factor: int = 2 ** (len(config["block_out_channels"]) - 1)  # pixels to a side of one latent
        self.channels: int = config["latent_channels"]
        self._scale: Array = np.asarray(config["scaling_factor"], dtype=np.float32)
        self._shift: Array = np.asarray(config.get("shift_factor") or 0, dtype=np.float32)
        mean, deviation = config.get("latents_mean"), config.get("latents_std")
        if mean is not None and deviation is not None:
            self._shift, std = (np.array(v, dtype=np.float32).reshape(1, -1, 1, 1) for v in (mean, deviation))
            self._scale = self._scale / std
        self.tiling: Tiling | None = None

    def enable_tiling(self, tile: int | None = None, overlap: float = 0.25, blend: str = "diffusers") -> None:
        """From now on take what is larger than a tile in tiles, to bound the memory: see `tiling` for the ways to `blend`.

        `tile` is in pixels to a side, where it is not given the size that the VAE was trained at, as in diffusers; `overlap`
        is the share of a tile that lies over the next. Raises InputError for a tile that is no whole number of latents, and
        for a VAE that was exported for one size.
        """
        trained = self.config.get("sample_size") or TILE * self.factor
        side = (max(trained) if isinstance(trained, list | tuple) else trained) if tile is None else tile
        latents = check_size("tile", side, self.factor) // self.factor
        fixed = {fixed_size(self.decoder, "latent_sample", axis) for axis in (2, 3)} - {None, latents}
        if fixed:
            raise InputError(
                f"tiles of {latents} latents: this bundle's VAE was exported with the static size of {fixed.pop()}"
            )
        self.tiling = Tiling(latents, overlap, blend)

    def disable_tiling(self) -> None:
        """Take every picture whole."""
        self.tiling = None

    def decode(self, latents: Array) -> Array:
        """Pictures (batch, height, width, 3) in 0..1. One at a time, which bounds the decoder's memory."""
        return to_unit(self.decoded(latents))

    def decoded(self, latents: Array) -> Array:
        """What the decoder answers, (batch, 3, height, width), about -1..1."""
        return self._answer(self.decoder, "latent_sample", self.unscaled(latents), Fraction(self.factor))[1]

    def unscaled(self, latents: Array) -> Array:
        """The z of these latents, which the autoencoder itself knows."""
        return np.asarray(latents / self._scale + self._shift, dtype=np.float32)

    def encode(self, pixels: Array, generators: Generators | None) -> Array:
        """Latents of pixels (batch, 3, height, width) in -1..1, drawn from the posterior; its mean without `generators`.

        Raises InputError for a bundle without an encoder.
        """
        self.require_encoder()
        assert self.encoder is not None
        # one at a time, as diffusers does where each picture has its own generator
        name, out = self._answer(self.encoder, "sample", pixels.astype(np.float32), Fraction(1, self.factor))
        if name != "latent_parameters":  # a tiny autoencoder's latents are certain
            return (out.astype(np.float32) - self._shift) * self._scale
        mean, log_variance = np.split(out.astype(np.float32), 2, axis=1)
        z = mean
        if generators is not None:
            deviation = np.exp(np.float32(0.5) * np.clip(log_variance, -30, 20))
            z = mean + deviation * randn_tensor(mean.shape, generators)
        return (z - self._shift) * self._scale

    def require_encoder(self) -> None:
        """Raise InputError for a bundle without one."""
        if self.encoder is None:
            raise InputError(
                f"a picture was given, and this bundle has no {ENCODER} to read it: export the whole pipeline"
            )

    def _answer(self, engine: Engine, given: str, array: Array, factor: Fraction) -> tuple[str, Array]:
        """An engine's one output, by name, whose sides are `factor` times the array's; in tiles, where they are on."""
        name = engine.signature.outputs[0].name
        unit = max(1, int(1 / factor))  # of the array to a side of one latent

        def run(part: Array) -> Array:
            return run_in_batches(engine, {given: part}, most=1)[name]

        how = self.tiling
        if how is None or not how.splits(*(side // unit for side in array.shape[2:])):
            return name, run(array)
        return name, np.concatenate([how.apply(run, one[None], unit, factor) for one in array])
