"""Texts to embeddings: a CLIP text encoder with its tokenizer, each text encoded once."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..engines import Engine, run_in_batches
from ..errors import InputError
from ..signature import Dim
from ..tokenizer import Tokenizer
from .call import Call
from .common import Array, check_array
from .weighting import Piece, emphasised, parse

TEXTS = 64  # whose embeddings are kept: 236 kB each for Stable Diffusion 1.x
NORM = "final_layer_norm"  # among the extras of a text encoder: .npz with weight, bias, eps


class Encoded(NamedTuple):
    """Embeddings of texts: (texts, tokens, width), and the pooled ones (texts, width), projected where the encoder does."""

    embeds: Array
    pooled: Array | None


@dataclass(frozen=True)
class Reading:
    """How texts are read: `clip_skip` layers before the one that is usual, `weighted` as in `weighting`, in `chunks` of the
    tokenizer's length that are encoded one by one and put one behind the other; the last are filled up."""

    clip_skip: int = 0
    weighted: bool = False
    chunks: int = 1


PLAIN = Reading()


class TextEncoder:
    """The encoder's answer to texts.

    `layer` is the hidden layer that is taken, counted from the last: 0 is the last one with its final norm, 1 the one before
    it as it is, which Stable Diffusion XL takes. `norm` is the file of that final norm, which layer 0 needs for `clip_skip`.
    """

    def __init__(self, engine: Engine, tokenizer: Tokenizer, layer: int = 0, norm: Path | None = None) -> None:
        self.engine, self.tokenizer, self.layer, self.norm = engine, tokenizer, layer, norm
        self._hidden = [spec.name for spec in engine.signature.outputs if spec.name.startswith("hidden_states.")]
        # engines do not change, so neither does what they answer to a text; safe for threads, which may both encode it
        self._encoded = functools.lru_cache(TEXTS)(self._encode)

    def __call__(self, texts: Sequence[str], reading: Reading = PLAIN, *, clip_skip: int | None = None) -> Encoded:
        """Embeddings in float32: copies, which the caller may change. The pooled ones are the first chunk's.

        `clip_skip` stands for that of `reading`. Raises InputError for a reading that this encoder cannot give.
        """
        if clip_skip is not None:
            reading = replace(reading, clip_skip=clip_skip)
        self.check(reading)
        found = [self._encoded(text, reading) for text in texts]
        pooled = [one.pooled for one in found if one.pooled is not None]
        return Encoded(np.concatenate([one.embeds for one in found]), np.concatenate(pooled) if pooled else None)

    def forget(self) -> None:
        """Drop what is kept: the encoder's weights have changed."""
        self._encoded = functools.lru_cache(TEXTS)(self._encode)  # an answer under way goes to the old one

    def check(self, reading: Reading) -> None:
        """Raise InputError for a reading that this encoder cannot give."""
        skip = reading.clip_skip
        if isinstance(skip, bool) or not isinstance(skip, int) or skip < 0:
            raise InputError(f"clip_skip must be a whole number of layers, 0 or more, not {skip!r}")
        if not skip:
            return
        most = len(self._hidden) - 1 - self.layer
        if skip > most:
            raise InputError(f"clip_skip={skip}: of this text encoder {max(most, 0)} layers can be skipped")
        if not self.layer and self.norm is None:
            raise InputError(
                "clip_skip needs the text encoder's final norm, which this bundle does not have: it was written before bundles "
                "had it; export it again"
            )

    def chunks(self, text: str, weighted: bool) -> int:
        """How many chunks a text fills, at least one."""
        count = sum(len(self.tokenizer.whole(piece.text)) for piece in _pieces(text, weighted))
        return max(1, -(-count // (self.tokenizer.length - 2)))

    def _encode(self, text: str, reading: Reading) -> Encoded:
        weights = None
        if reading.weighted or reading.chunks > 1:
            ids, weights = self._laid_out(text, reading)
        else:
            ids = self.tokenizer([text])
        out = run_in_batches(self.engine, {"input_ids": ids}, most=1)
        embeds = self._taken(out, reading.clip_skip)
        if weights is not None:
            embeds = emphasised(embeds, weights)
        embeds = embeds.reshape(1, -1, embeds.shape[-1])
        embeds.setflags(write=False)
        pooled = out.get("text_embeds", out.get("pooler_output"))
        return Encoded(embeds, None if pooled is None else pooled[:1].astype(np.float32))

    def _laid_out(self, text: str, reading: Reading) -> tuple[Array, Array]:
        """Ids and weights, (chunks, length) each: every chunk between a beginning and an end, the last filled up."""
        tokenizer = self.tokenizer
        pieces = [(tokenizer.whole(text), weight) for text, weight in _pieces(text, reading.weighted)]
        tokens = [(id, weight) for ids, weight in pieces for id in ids]
        room = tokenizer.length - 2
        if len(tokens) > room * reading.chunks:
            cut = [id for id, _ in tokens[room * reading.chunks :]]
            tokenizer.warn_of_cut(tokenizer.text(cut))
        ids = np.full((reading.chunks, tokenizer.length), tokenizer.pad, dtype=np.int64)
        weights = np.ones(ids.shape, dtype=np.float32)
        begin, end = tokenizer.ends
        for i in range(reading.chunks):
            own = tokens[i * room : (i + 1) * room]
            ids[i, : len(own) + 2] = [begin, *(id for id, _ in own), end]
            weights[i, 1 : len(own) + 1] = [weight for _, weight in own]
        return ids, weights

    def _taken(self, out: dict[str, Array], skipped: int) -> Array:
        """The layer that is taken, in float32."""
        if not (self.layer or skipped):
            return out["last_hidden_state"].astype(np.float32)
        hidden = out[self._hidden[-1 - self.layer - skipped]].astype(np.float32)
        return hidden if self.layer else self._normed(hidden)

    def _normed(self, hidden: Array) -> Array:
        assert self.norm is not None  # `check` has seen to it
        with np.load(self.norm) as norm:
            weight, bias, eps = norm["weight"], norm["bias"], float(norm["eps"])
        centred = hidden - hidden.mean(axis=-1, keepdims=True)
        deviation = np.sqrt(np.square(centred).mean(axis=-1, keepdims=True) + np.float32(eps))
        normed: Array = centred / deviation * weight + bias
        return normed


def count_of(call: Call, texts: Sequence[str] | None, shape: Sequence[Dim]) -> int:
    """How many prompts a call has, as `texts` or as embeddings of the `shape` (batch, tokens, width) that the denoiser takes.
    Raises InputError for embeddings of another."""
    names = ("prompt_embeds", "negative_prompt_embeds")
    given = {n: check_array(n, getattr(call, n)) for n in names if getattr(call, n) is not None}
    first = given.get("prompt_embeds")
    count = len(texts or ()) if first is None else len(first) if first.ndim else 0
    _, tokens, width = shape
    for name, embeds in given.items():
        if isinstance(tokens, str):  # any number, and the same for both
            tokens = embeds.shape[1] if embeds.ndim == 3 else 0
        if embeds.shape != (count, tokens, width) or not count:
            raise InputError(
                f"{name} has shape {embeds.shape}, not {(count or 'prompts', tokens or 'any number', width)}"
            )
    return count


def readings(
    call: Call, encoders: Sequence[TextEncoder], texts: Sequence[str], negatives: Sequence[str], tokens: Dim
) -> tuple[Reading, Reading]:
    """How a call's prompts and its negative ones are read: in equally many chunks, and no layer skipped for the negative
    ones, as in diffusers. `tokens` is how many the denoiser takes: a number, or a name where it takes any.

    Raises InputError for arguments that cannot be used, and for long prompts where the denoiser takes one chunk.
    """
    length, chunks = encoders[0].tokenizer.length, 1
    if call.prompt_weighting:
        for text in (*texts, *negatives):
            parse(text)
    given = call.prompt_embeds if call.prompt_embeds is not None else call.negative_prompt_embeds
    if given is not None:
        chunks, rest = divmod(np.shape(given)[1], length)
        if rest and (call.prompt_embeds is None or call.negative_prompt_embeds is None):
            raise InputError(
                f"embeddings of {np.shape(given)[1]} tokens were given, and a text beside them has a multiple of {length}: give "
                "embeddings for both"
            )
    if call.long_prompts:
        found = [encoder.chunks(text, call.prompt_weighting) for encoder in encoders for text in (*texts, *negatives)]
        chunks = max([chunks, *found])
    if isinstance(tokens, int) and chunks * length > tokens:
        raise InputError(
            f"long_prompts: a prompt needs {chunks * length} tokens, and this bundle's denoiser takes {tokens}: a bundle exported "
            "with --long-prompts (long_prompts=True) takes any number; without long_prompts the prompt is cut"
        )
    reading = Reading(0 if call.clip_skip is None else call.clip_skip, call.prompt_weighting, chunks)
    for encoder in encoders:
        encoder.check(reading)
    return reading, replace(reading, clip_skip=0)


def _pieces(text: str, weighted: bool) -> list[Piece]:
    return parse(text) if weighted else [Piece(text, 1.0)]
