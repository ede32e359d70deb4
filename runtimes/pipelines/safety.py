"""Stable Diffusion's safety checker: which finished pictures are held back.

    score = round(cos(e, c) - w + adjustment, 3),   flagged where any concept's score is above 0

with e the picture's CLIP embedding, c a concept's and w its threshold. `adjustment` is 0.01 where one of the three special
concepts scores above 0, else 0. Source: Rando et al., "Red-Teaming the Stable Diffusion Safety Filter", 2022, section 2, and
diffusers' `StableDiffusionSafetyChecker`, whose rounding decides at the edge.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..engines import Engine, run_in_batches
from ..image_processor import ClipImageProcessor
from ..images import to_pil
from .common import Array

ROLE = "safety_checker"
PROCESSOR = "feature_extractor"
CARE = np.float32(0.01)

_log = logging.getLogger("ingot")


class SafetyChecker:
    """The checker's graph, which scores pictures, and the rule that judges the scores."""

    def __init__(self, engine: Engine, processor: Mapping[str, Any]) -> None:
        self.engine, self.processor = engine, ClipImageProcessor(processor)

    def __call__(self, pictures: Array) -> tuple[Array, list[bool]]:
        """Pictures (batch, height, width, 3) in 0..1 with the flagged ones black, and which they are."""
        scores = run_in_batches(self.engine, {"clip_input": self.processor(to_pil(pictures))})
        flags = flagged(scores["special_scores"], scores["concept_scores"])
        if flags.any():
            _log.warning(
                "the safety checker flagged %d of %d pictures, which are black now; another prompt or seed would do, or "
                "safety_checker=None when the bundle is loaded",
                flags.sum(), len(flags),
            )  # fmt: skip
        return np.where(flags[:, None, None, None], np.float32(0), pictures), flags.tolist()


def flagged(special: Array, concepts: Array) -> Array:
    """Which pictures are held back: (batch,) of bool. Scores without adjustment, (batch, 3) and (batch, concepts)."""
    special, concepts = special.astype(np.float32), concepts.astype(np.float32)
    care = (np.round(special, 3) > 0).any(axis=1, keepdims=True)
    return np.asarray((np.round(concepts + CARE * care, 3) > 0).any(axis=1))
