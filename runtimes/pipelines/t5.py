"""T5's encoder: texts to embeddings of a fixed number of tokens, and which of them are words. Raffel et al. 2020."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..engines import Engine, run_in_batches
from ..errors import InputError
from ..tokenizer import Tokenizer
from .common import Array, input_shape

TEXTS = 16  # whose embeddings are kept: 4.9 MB each for 300 tokens of T5-XXL
IDS, MASK = "input_ids", "attention_mask"


class Read(NamedTuple):
    """Embeddings of texts (texts, tokens, width), and 1 for the tokens that are not padding, (texts, tokens)."""

    embeds: Array
    mask: Array


class T5Encoder:
    """The encoder's answer to texts, in the graph's own number of tokens; each is encoded once."""

    def __init__(self, engine: Engine, tokenizer: Tokenizer) -> None:
        self.engine, self.tokenizer = engine, tokenizer
        length = input_shape(engine, IDS)[1]
        self.length = length if isinstance(length, int) else tokenizer.length
        self._masked = any(spec.name == MASK for spec in engine.signature.inputs)
        self._read = functools.lru_cache(TEXTS)(self._encode)

    def __call__(self, texts: Sequence[str]) -> Read:
        """Embeddings in float32: copies, which the caller may change."""
        found = [self._read(text) for text in texts]
        return Read(np.concatenate([one.embeds for one in found]), np.concatenate([one.mask for one in found]))

    def check_length(self, asked: object) -> None:
        """Raise InputError for a `max_sequence_length` that is not the graph's."""
        if asked not in (None, self.length):
            raise InputError(
                f"max_sequence_length={asked!r}: the text encoder of this bundle was exported for {self.length} tokens; leave it out"
            )

    def forget(self) -> None:
        """Drop what is kept: the encoder's weights have changed."""
        self._read = functools.lru_cache(TEXTS)(self._encode)  # an answer under way goes to the old one

    def _encode(self, text: str) -> Read:
        ids, mask = self.tokenizer.masked([text], self.length)
        given = {IDS: ids, MASK: mask} if self._masked else {IDS: ids}
        embeds = run_in_batches(self.engine, given, most=1)["last_hidden_state"].astype(np.float32)
        embeds.setflags(write=False)
        return Read(embeds, mask)
