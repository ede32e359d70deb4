"""What pipelines of flow models have in common: where a picture's run begins, and how its size moves the noise levels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..schedulers import Scheduler
from .call import TEXT_TO_IMAGE, Call
from .latent_diffusion import LatentDiffusion
from .start import Span, begin_at


class Flow(LatentDiffusion):
    """A flow of latents: of a strength's steps the one that it ends in counts, and a picture that is given is resized to the
    model's own size where no other is asked for: diffusers' rules for these."""

    def _span(self, call: Call, scheduler: Scheduler) -> Span:
        if call.task == TEXT_TO_IMAGE:
            return Span()
        return Span(begin_at(scheduler, call.count(scheduler), call.strength, begun=True))

    def _own_size(self, image: Any) -> tuple[int, int]:  # noqa: ARG002  # a picture of any size
        return self.default_size


def shift(config: Mapping[str, Any], tokens: int) -> float:
    """mu, by which a scheduler with `use_dynamic_shifting` moves the noise levels of a picture of so many tokens.

    The line through (base_image_seq_len, base_shift) and (max_image_seq_len, max_shift) of the scheduler's config: Esser et
    al. 2024, "Scaling Rectified Flow Transformers", section 5.3.2, as Black Forest Labs fitted it.
    """
    defaults = {"base_image_seq_len": 256, "max_image_seq_len": 4096, "base_shift": 0.5, "max_shift": 1.15}
    few, many, low, high = (config.get(name, default) for name, default in defaults.items())
    slope = (high - low) / (many - few)
    return float(tokens * slope + low - slope * few)
