"""Prompt weights in the syntax of AUTOMATIC1111's web interface, and what they do to embeddings.

    (word)       the word 1.1 times as strong; ((word)) 1.1 * 1.1 times
    [word]       1 / 1.1 times
    (word:1.3)   1.3 times; in other brackets, the product
    \\(  \\)  \\[  \\]  \\\\   the character itself

    z' = w z * mean(z) / mean(w z)

with w the weight of each token. The mean over a chunk's tokens and features stays what it was; where it is 0 but for rounding,
it is left alone. Source: the web interface's documentation, "Attention/emphasis", and its "Original" emphasis.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np

from ..errors import InputError
from .common import Array

STRONGER = 1.1
ROUNDING = 1e-5  # of the mean magnitude: a mean below it is what rounding left of 0
TOKEN = re.compile(r"\\[\\()\[\]]|\\|\(|\[|\)|\]|:\s*[+-]?[.\d]+\s*\)|[^\\()\[\]:]+|:")


class Piece(NamedTuple):
    """A part of a prompt and its weight."""

    text: str
    weight: float


def parse(prompt: str) -> list[Piece]:
    """A prompt in parts of one weight each.

    A bracket that is never closed holds to the end; one that was never opened is text. Raises InputError for a weight that is
    no number.

    >>> parse("a (red:1.5) ball")
    [Piece(text='a ', weight=1.0), Piece(text='red', weight=1.5), Piece(text=' ball', weight=1.0)]
    """
    pieces: list[Piece] = []
    open_at: dict[str, list[int]] = {"(": [], "[": []}
    for token in TOKEN.findall(prompt):
        if token in open_at:
            open_at[token].append(len(pieces))
        elif token.startswith(":") and len(token) > 1 and open_at["("]:
            _scale(pieces, open_at["("].pop(), _number(token[1:-1], prompt))
        elif token == ")" and open_at["("]:
            _scale(pieces, open_at["("].pop(), STRONGER)
        elif token == "]" and open_at["["]:
            _scale(pieces, open_at["["].pop(), 1 / STRONGER)
        else:
            pieces.append(Piece(token[1:] if token.startswith("\\") else token, 1.0))
    for bracket, factor in (("(", STRONGER), ("[", 1 / STRONGER)):
        for start in open_at[bracket]:
            _scale(pieces, start, factor)
    return _joined(pieces)


def emphasised(embeds: Array, weights: Array) -> Array:
    """Embeddings (chunks, tokens, width) of tokens with `weights` (chunks, tokens), each chunk's mean kept."""
    strong = embeds * weights[:, :, None].astype(embeds.dtype)
    before, after = (z.mean(axis=(1, 2), keepdims=True) for z in (embeds, strong))
    rounding = ROUNDING * np.abs(strong).mean(axis=(1, 2), keepdims=True)
    ratio = np.divide(before, after, out=np.ones_like(after), where=np.abs(after) > rounding)
    # a chunk without weights stays as it is, to the bit
    return np.where((weights == 1).all(axis=1)[:, None, None], embeds, strong * ratio)


def _scale(pieces: list[Piece], start: int, factor: float) -> None:
    pieces[start:] = [Piece(text, weight * factor) for text, weight in pieces[start:]]


def _number(text: str, prompt: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InputError(f"{text.strip()!r} is no weight, in the prompt {prompt!r}; (word:1.3) would do") from None


def _joined(pieces: list[Piece]) -> list[Piece]:
    """Neighbours of one weight as one; an empty prompt is one empty piece."""
    joined: list[Piece] = []
    for piece in pieces or [Piece("", 1.0)]:
        if joined and joined[-1].weight == piece.weight:
            joined[-1] = Piece(joined[-1].text + piece.text, piece.weight)
        else:
            joined.append(piece)
    return joined
