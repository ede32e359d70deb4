"""Small pictures of unfinished latents: each latent through one linear map, fitted to the VAE when the bundle was made.

    rgb = latents . matrix + offset

A pixel for each latent, in microseconds, where the decoder takes seconds.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import InputError
from ..images import to_pil, to_unit
from ..late import Late
from .common import Array

if TYPE_CHECKING:
    from PIL import Image
else:
    Image = Late("PIL.Image")

EXTRA = "latents_to_rgb"  # among the extras of the VAE's decoder


class Preview:
    """The map of one VAE; `file` is None for a bundle without it."""

    def __init__(self, file: Path | None) -> None:
        self.file = file
        self._map: tuple[Array, Array] | None = None

    def __call__(self, latents: Array, size: tuple[int, int] | None = None) -> list[Image.Image]:
        """Pictures of latents (batch, channels, height, width), of that height and width, or enlarged to `size` (height,
        width) in pixels. Raises InputError where there is no map."""
        matrix, offset = self._loaded()
        colours = np.einsum("bchw,ck->bkhw", latents.astype(np.float32), matrix) + offset[:, None, None]
        pictures = to_pil(to_unit(colours))
        return pictures if size is None else [one.resize(size[::-1], Image.Resampling.BILINEAR) for one in pictures]

    def _loaded(self) -> tuple[Array, Array]:
        if self._map is None:
            if self.file is None:
                raise InputError(
                    "this bundle has no map for previews (it was written before bundles had it, or its VAE gives no pictures): "
                    "export it again, or decode(state.denoised)"
                )
            with np.load(self.file) as stored:
                self._map = stored["matrix"], stored["offset"]
        return self._map
