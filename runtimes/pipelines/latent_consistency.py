"""Latent consistency: a few steps of a distilled UNet, which takes guidance as an input in place of a doubled batch.

Luo, Tan, Huang, Li & Zhao 2023, "Latent Consistency Models". What is decoded is the last step's own prediction.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

from ..errors import InputError
from ..schedulers import LCMScheduler, Scheduler
from .call import IMAGE_TO_IMAGE, TEXT_TO_IMAGE, Call
from .common import Output, State, check_number
from .latent_diffusion import Defaults
from .stable_diffusion import StableDiffusion
from .start import Span

_COMMON = {"num_inference_steps": 4, "guidance_scale": 8.5}


@dataclass(kw_only=True)
class ConsistencyCall(Call):
    """What `steps` takes: `original_inference_steps`, the steps that the model was distilled from, too."""

    original_inference_steps: int | None = None


class LatentConsistency(StableDiffusion):
    """diffusers' `LatentConsistencyModelPipeline` and `LatentConsistencyModelImg2ImgPipeline` in one.

    `strength` shortens the schedule here, and every step of it is run.
    """

    call_type = ConsistencyCall
    defaults: ClassVar[Defaults] = {TEXT_TO_IMAGE: _COMMON, IMAGE_TO_IMAGE: {**_COMMON, "strength": 0.8}}

    def finish(self, state: State, output_type: str) -> Output:
        """The last step's prediction, or its pictures."""
        return super().finish(dataclasses.replace(state, latents=state.denoised), output_type)

    def _schedule_options(self, call: Call) -> dict[str, Any]:
        assert isinstance(call, ConsistencyCall)
        if not isinstance(self.scheduler, LCMScheduler):
            raise InputError(
                f"{self.class_name} runs with an LCMScheduler, not {type(self.scheduler).__name__}: "
                "LCMScheduler.from_config(pipe.scheduler.config) makes one"
            )
        if call.negative_prompt is not None or call.negative_prompt_embeds is not None:
            raise InputError(
                "this model was distilled with its guidance, against the empty prompt: leave the negative prompt out"
            )
        options: dict[str, Any] = {"original_inference_steps": call.original_inference_steps}
        if call.task == IMAGE_TO_IMAGE:
            options["strength"] = check_number("strength", call.strength)
        return options

    def _span(self, call: Call, scheduler: Scheduler) -> Span:  # noqa: ARG002  # one call for all families
        return Span()


PIPELINE = LatentConsistency
