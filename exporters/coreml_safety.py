"""Stable Diffusion's safety checker as a component of its own: it judges a finished picture, so that no recording has it.

    cos(a, b) = a.b / (|a| |b|)
    special  = any(cos(e, s_i) - w_i + adjustment > 0)
    concepts = cos(e, c_j) - w_j + 0.01 special,   flagged where any of them is above 0

with e the picture's CLIP embedding, s and c the special and other concepts with their thresholds w. Source: Rando et al.,
"Red-Teaming the Stable Diffusion Safety Filter", 2022, and diffusers' `StableDiffusionSafetyChecker`, which rounds each score
to three digits before it compares; like Apple's package, this does not. Inputs and outputs are those of `SafetyChecker.swift`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ingot.runtimes.signature import Signature, TensorSpec

from .component import Call, Component, FlatModule, Slot

ROLE = "safety_checker"
# The Swift package hands over an empty picture of this size, whatever size it made, and reads only the verdict.
PICTURE = (1, 512, 512, 3)
INPUTS = ("clip_input", "images", "adjustment")


class Checker(nn.Module):
    """The checker without branches: a flagged picture comes back black, with its verdict and scores."""

    def __init__(self, checker: Any) -> None:
        super().__init__()
        self.checker = checker
        self.config = checker.config

    def forward(self, clip_input: Tensor, images: Tensor, adjustment: Tensor) -> dict[str, Tensor]:
        """`clip_input` (1, 3, side, side) as CLIP's processor makes it, `images` (1, height, width, 3), `adjustment` (1,)
        that is added to the special scores."""
        embedding = self.checker.visual_projection(self.checker.vision_model(clip_input).pooler_output)
        special = _cosines(embedding, self.checker.special_care_embeds)
        special = special - self.checker.special_care_embeds_weights + adjustment
        care = (special > 0).any(dim=1, keepdim=True).to(embedding.dtype)
        scores = _cosines(embedding, self.checker.concept_embeds) - self.checker.concept_embeds_weights + 0.01 * care
        flagged = (scores > 0).any(dim=1).to(embedding.dtype)[:, None, None, None]
        return {"filtered_images": images * (1 - flagged), "has_nsfw_concepts": flagged, "concept_scores": scores}


def safety_component(pipe: Any) -> Component | None:
    """The pipeline's safety checker with one call, on noise; None where it has none."""
    checker = getattr(pipe, ROLE, None)
    if checker is None:
        return None
    source = Checker(checker.eval().float()).eval()
    module = FlatModule(source, "forward", {name: Slot(name) for name in INPUTS}, INPUTS)
    side = checker.config.vision_config.image_size
    generator = torch.Generator().manual_seed(0)
    inputs = {
        "clip_input": torch.randn((1, 3, side, side), generator=generator),
        "images": torch.rand(PICTURE, generator=generator),
        "adjustment": torch.zeros(1),
    }
    with torch.no_grad():
        outputs = module.named_outputs(*inputs.values())
    signature = Signature(_specs(inputs), _specs(outputs))
    return Component(ROLE, source, module, (Call(inputs, outputs),), signature)


def _cosines(a: Tensor, b: Tensor) -> Tensor:
    return F.normalize(a) @ F.normalize(b).T


def _specs(tensors: dict[str, Tensor]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(name, "float32", tuple(tensor.shape)) for name, tensor in tensors.items())
