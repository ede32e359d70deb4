"""InstructPix2Pix with Stable Diffusion XL, CosXL's form of it included: see `instruct_pix2pix` for the equation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..errors import InputError
from ..schedulers import Scheduler
from .base import Parts
from .call import IMAGE_TO_IMAGE, Call
from .common import Generators, State, check_number
from .instruct_pix2pix import EditCall, EditDenoiser, from_edited
from .latent_diffusion import Defaults
from .stable_diffusion_xl import StableDiffusionXL
from .stable_diffusion_xl_conditions import XLCall, last_step
from .start import Span, Starting, given_latents


@dataclass(kw_only=True)
class XLEditCall(XLCall, EditCall):
    """What `steps` takes: Stable Diffusion XL's arguments, and `image_guidance_scale`."""


class InstructPix2PixXL(StableDiffusionXL):
    """diffusers' `StableDiffusionXLInstructPix2PixPipeline`. The picture is resized to the size of the call, which is the
    model's own where none is given."""

    call_type = XLEditCall
    denoiser_type = EditDenoiser
    defaults: ClassVar[Defaults] = {
        IMAGE_TO_IMAGE: {"num_inference_steps": 100, "guidance_scale": 5.0, "image_guidance_scale": 1.5},
    }

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        self.further_channels = self.vae.channels
        self._scaled: bool = parts.config.get("is_cosxl_edit") or False

    def _check(self, call: Call) -> None:
        assert isinstance(call, XLEditCall)
        check_number("image_guidance_scale", call.image_guidance_scale)

    def _prepare(self, call: Call, state: State) -> None:
        assert isinstance(call, XLEditCall)
        state.image_guidance_scale = float(call.image_guidance_scale or 0)

    def _size(self, call: Call) -> tuple[int, int]:
        return self._side(call, 0), self._side(call, 1)

    def _span(self, call: Call, scheduler: Scheduler) -> Span:
        assert isinstance(call, XLEditCall)
        if call.denoising_start is not None:
            raise InputError(f"denoising_start={call.denoising_start}: an edit starts from noise, and has none")
        return Span(end=last_step(call, scheduler, 0))

    def _start(
        self, call: Call, scheduler: Scheduler, batch: int, size: tuple[int, int], generators: Generators, span: Span
    ) -> Starting:
        """Noise, with the picture's latents behind it, which CosXL wants scaled as latents are."""
        self._require_channels(call)
        noise = given_latents(call.latents, self._shape(batch, size))
        scale = self.vae.config["scaling_factor"] if self._scaled else 1.0
        return from_edited(self._pixels(call, size), self.vae, noise, scheduler, batch, span, generators, scale)


PIPELINE = InstructPix2PixXL
