"""The checkpoint's safety checker as a component: it judges finished pictures, so that no recording has it.

Its graph gives scores, cos(e, c) - w for each concept (see runtimes.pipelines.safety), and the runtime judges them, since
diffusers rounds them before it does. Core ML's own package for Apple's Swift stands in coreml_safety.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ingot.runtimes.signature import Signature, TensorSpec

from .component import Call, Component, FlatModule, Slot

ROLE = "safety_checker"
INPUT = "clip_input"
BATCH = 3  # of the recorded calls; tracing takes 1 for a constant


class SafetyScores(nn.Module):
    """The checker up to its thresholds."""

    def __init__(self, checker: Any) -> None:
        super().__init__()
        self.checker = checker
        self.config = checker.config

    def forward(self, clip_input: Tensor) -> dict[str, Tensor]:
        """`clip_input` (batch, 3, side, side) as CLIP's processor makes it to scores (batch, 3) and (batch, concepts)."""
        checker = self.checker
        embedding = F.normalize(checker.visual_projection(checker.vision_model(clip_input).pooler_output))
        special = embedding @ F.normalize(checker.special_care_embeds).T - checker.special_care_embeds_weights
        concepts = embedding @ F.normalize(checker.concept_embeds).T - checker.concept_embeds_weights
        return {"special_scores": special, "concept_scores": concepts}


def safety_scores(pipe: Any, batch: int = BATCH) -> list[Component]:
    """The pipeline's safety checker, with calls on noise, the first of `batch` pictures; none where it has none."""
    checker = getattr(pipe, ROLE, None)
    if checker is None or not hasattr(checker, "concept_embeds"):
        return []
    source = SafetyScores(checker.eval().float()).eval()
    module = FlatModule(source, "forward", {INPUT: Slot(INPUT)}, (INPUT,))
    side = checker.config.vision_config.image_size
    calls = tuple(_call(module, batch, side) for batch in (batch, batch + 1))
    outputs = tuple(
        TensorSpec(name, "float32", ("batch", *tensor.shape[1:])) for name, tensor in calls[0].outputs.items()
    )
    signature = Signature((TensorSpec(INPUT, "float32", ("batch", 3, side, side)),), outputs)
    return [Component(ROLE, source, module, calls, signature)]


def _call(module: FlatModule, batch: int, side: int) -> Call:
    noise = torch.randn((batch, 3, side, side), generator=torch.Generator().manual_seed(batch))
    with torch.no_grad():
        return Call({INPUT: noise}, module.named_outputs(noise))
