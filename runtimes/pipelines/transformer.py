"""Diffusion transformers as denoisers."""

from __future__ import annotations

from typing import ClassVar

from .common import Array, State
from .denoiser import Denoiser, Plan


class Transformer(Denoiser):
    """A transformer of latents. Of one that predicts the noise's variance beside it, the variance is left out, as diffusers
    does: Peebles & Xie 2022 trained with it, DDIM and DPM-Solver do without."""

    role: ClassVar[str] = "transformer"
    sample: ClassVar[str] = "hidden_states"
    answer: ClassVar[str] = "out_hidden_states"

    def predict(self, state: State, plan: Plan, step: int, sample: Array, timestep: float) -> Array:
        """The guided prediction for a scaled sample: (batch, channels, height, width)."""
        answer = super().predict(state, plan, step, sample, timestep)
        channels = sample.shape[1]
        return answer[:, :channels] if answer.shape[1] == 2 * channels else answer
