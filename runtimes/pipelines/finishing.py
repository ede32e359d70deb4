"""From latents to what a call returns: the VAE, in tiles where they are on, previews, and the safety checker."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..images import from_pil, to_pil
from .base import Parts, Pipeline
from .common import Array, Output, State
from .preview import EXTRA as PREVIEW
from .preview import Preview
from .safety import PROCESSOR, ROLE, SafetyChecker
from .vae import DECODER, VAE

if TYPE_CHECKING:
    from PIL import Image


class Finishing(Pipeline):
    """A pipeline whose latents a VAE decodes."""

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        self.vae_decoder, self._vae_config = parts.engines[DECODER], parts.configs[DECODER]
        self.vae = VAE(parts.engines, self._vae_config)
        self.vae_scale_factor = self.vae.factor
        self._preview = Preview(parts.extras.get(DECODER, {}).get(PREVIEW))
        checker, processor = parts.engines.get(ROLE), parts.processors.get(PROCESSOR, {})
        self.safety_checker = None if checker is None else SafetyChecker(checker, processor)

    def enable_vae_tiling(self, tile: int | None = None, overlap: float = 0.25, blend: str = "diffusers") -> None:
        """From now on decode and encode large pictures in overlapping tiles of `tile` pixels to a side, which bounds the
        memory; without arguments, as diffusers does. Raises InputError: see `VAE.enable_tiling`."""
        self.vae.enable_tiling(tile, overlap, blend)

    def disable_vae_tiling(self) -> None:
        """Decode and encode every picture whole."""
        self.vae.disable_tiling()

    def enable_vae_slicing(self) -> None:
        """For scripts that call it on diffusers' pipelines: pictures are always decoded one at a time."""

    disable_vae_slicing = enable_vae_slicing

    def decode(self, latents: Array) -> Array:
        """Pictures of latents: (batch, height, width, 3) in 0..1. One at a time, which bounds the decoder's memory."""
        return self.vae.decode(latents)

    def preview(self, state: State | Array, size: tuple[int, int] | None = None) -> list[Image.Image]:
        """Small PIL pictures of what a step foresees (`state.denoised`), or of latents: a pixel for each latent, or enlarged
        to `size`, (height, width). Raises InputError for a bundle without the map that it takes."""
        return self._preview(state.denoised if isinstance(state, State) else state, size)

    def finish(self, state: State, output_type: str) -> Output:
        """The last latents, or their pictures; those that the safety checker flagged are black."""
        if output_type == "latent":
            return Output(state.latents)
        pictures, flags = self.decode(state.latents), None
        if self.safety_checker is not None:
            pictures, flags = self.safety_checker(pictures)
        if state.overlay is not None:
            pictures = from_pil([state.overlay(picture) for picture in to_pil(pictures)])
        return Output(to_pil(pictures) if output_type == "pil" else pictures, nsfw_content_detected=flags)
