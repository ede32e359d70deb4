"""Texts to embeddings: a CLIP text encoder with its tokenizer, each text encoded once."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..engines import Engine, run_in_batches
from ..tokenizer import Tokenizer
from .common import Array

TEXTS = 64  # whose embeddings are kept: 236 kB each for Stable Diffusion 1.x


class Encoded(NamedTuple):
    """Embeddings of texts: (texts, tokens, width), and the pooled ones (texts, width) of an encoder that projects them."""

    embeds: Array
    pooled: Array | None


class TextEncoder:
    """The encoder's answer to texts.

    `layer` is the hidden layer that is taken, counted from the last: 0 is the last one with its final norm, 1 the one before
    it as it is, which Stable Diffusion XL takes.
    """

    def __init__(self, engine: Engine, tokenizer: Tokenizer, layer: int = 0) -> None:
        self.engine, self.tokenizer, self.layer = engine, tokenizer, layer
        # engines do not change, so neither does what they answer to a text; safe for threads, which may both encode it
        self._encoded = functools.lru_cache(TEXTS)(self._encode)

    def __call__(self, texts: Sequence[str]) -> Encoded:
        """Embeddings in float32: copies, which the caller may change."""
        found = [self._encoded(text) for text in texts]
        pooled = [one.pooled for one in found if one.pooled is not None]
        return Encoded(np.concatenate([one.embeds for one in found]), np.concatenate(pooled) if pooled else None)

    def forget(self) -> None:
        """Drop what is kept: the encoder's weights have changed."""
        self._encoded.cache_clear()

    def _encode(self, text: str) -> Encoded:
        out = run_in_batches(self.engine, {"input_ids": self.tokenizer([text])}, most=1)
        embeds = out[self._output()].astype(np.float32)
        embeds.setflags(write=False)
        pooled = out.get("text_embeds")
        return Encoded(embeds, None if pooled is None else pooled.astype(np.float32))

    def _output(self) -> str:
        if not self.layer:
            return "last_hidden_state"
        hidden = [spec.name for spec in self.engine.signature.outputs if spec.name.startswith("hidden_states.")]
        return hidden[-1 - self.layer]
