"""Textual inversion (Gal et al. 2022): vectors for words that a text encoder never saw, read from files and put to use.

    diffusers          {"<cat>": (width,) or (vectors, width)}
    A1111              {"emb_params": (vectors, width)}, its word the file's name
    SDXL               {"clip_l": (vectors, 768), "clip_g": (vectors, 1280)}, or text_encoders_0 and text_encoders_1

A compiled graph has its table of vectors with as many rows as the vocabulary has entries. Some of those no text can ever
name (`Tokenizer.unused`): they are what the new vectors take.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .engines import Arrays, Engine
from .engines._weights import Adaptable, Change
from .errors import EngineError, InputError
from .loras.safetensors import open_safetensors
from .tokenizer import Tokenizer

TOKENIZERS = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}
KEYS = {
    "clip_l": "text_encoder", "clip_g": "text_encoder_2",
    "text_encoders_0": "text_encoder", "text_encoders_1": "text_encoder_2",
}  # fmt: skip
A1111 = "emb_params"
TABLE = "token_embedding.weight"
EXPORT = (
    "`ingot export MODEL --textual-inversion FILE:TOKEN` (ingot.export(textual_inversions=…)) writes them into a bundle"
)

Inversions = Iterable[tuple[str | Path, str | None]]
"""Files, each with the token that stands for it in prompts; None takes the file's own."""


@dataclass(frozen=True)
class Embedding:
    """A token and its vectors, (vectors, width) for each text encoder by its role."""

    file: Path
    token: str
    vectors: Mapping[str, NDArray[np.float32]]


def read_embeddings(inversions: Inversions) -> list[Embedding]:
    """The embeddings of files. Raises InputError for what is no list of (file, token), and for other files."""
    if isinstance(inversions, str | Path):
        raise _not_a_list(inversions)
    found = []
    for one in inversions:
        fits = isinstance(one, tuple | list) and len(one) == 2 and isinstance(one[0], str | Path)
        if not fits or not isinstance(one[1], str | None):
            raise _not_a_list(one)
        found.append(read_embedding(Path(one[0]), one[1]))
    tokens = [one.token for one in found]
    if twice := sorted({token for token in tokens if tokens.count(token) > 1}):
        raise InputError(f"the token {twice[0]!r} stands for two textual inversions; name one of them otherwise")
    return found


def read_embedding(file: Path, token: str | None = None) -> Embedding:
    """One file. Raises InputError for a file that holds no embeddings."""
    source = open_safetensors(file)
    names = list(source.entries)
    if len(names) == 1 and names[0] not in KEYS:
        own = file.stem if names[0] == A1111 else names[0]
        vectors = {"text_encoder": source.read(names[0])}
    elif names and set(names) <= set(KEYS):
        own, vectors = file.stem, {KEYS[name]: source.read(name) for name in names}
    else:
        raise InputError(
            f"{file} holds no textual inversion: one tensor, or clip_l and clip_g, are expected, and it has "
            f"{', '.join(names[:4]) or 'none'}{' …' * (len(names) > 4)}"
        )
    vectors = {role: array[None] if array.ndim == 1 else array for role, array in vectors.items()}
    shapes = [array.shape for array in vectors.values()]
    if any(len(shape) != 2 or 0 in shape for shape in shapes) or len({shape[0] for shape in shapes}) > 1:
        raise InputError(
            f"{file}: vectors of shapes {shapes}; (vectors, width) is needed, as many for each text encoder"
        )
    return Embedding(file, token or own, vectors)


def take_embeddings(
    inversions: Inversions,
    engines: Mapping[str, Engine],
    tokenizers: Mapping[str, Tokenizer],
    quantized: Mapping[str, str],
) -> dict[str, Engine]:
    """The engines with these embeddings in their text encoders, whose tokenizers get the tokens.

    Raises InputError for files and tokens that cannot be used, or do not fit the model; EngineError where a text encoder's
    weights cannot be changed.
    """
    rows: dict[str, dict[int, NDArray[np.float32]]] = {}
    for embedding in read_embeddings(inversions):
        for role, vectors in embedding.vectors.items():
            table = _table(embedding, role, engines, quantized)
            if vectors.shape[1] != table[1]:
                raise InputError(
                    f"{embedding.file} has vectors of {vectors.shape[1]} numbers, and those of this bundle's {role} have {table[1]}: "
                    "is it for another base model?"
                )
            tokenizer = tokenizers[TOKENIZERS[role]]
            free = [row for row in tokenizer.unused() if row < table[0]][: len(vectors)]
            if len(free) < len(vectors):
                raise InputError(
                    f"{embedding.file} has {len(vectors)} vectors, and this bundle's {role} has {len(free)} rows left that no text "
                    f"uses; {EXPORT}"
                )
            tokenizer.add(embedding.token, free)
            rows.setdefault(role, {}).update(zip(free, vectors, strict=True))
    return {**engines, **{role: Extended(engines[role], own) for role, own in rows.items()}}


def _table(
    embedding: Embedding, role: str, engines: Mapping[str, Engine], quantized: Mapping[str, str]
) -> tuple[int, ...]:
    """The shape of a text encoder's table."""
    if role not in engines:
        have = ", ".join(one for one in engines if one in TOKENIZERS)
        raise InputError(
            f"{embedding.file} has vectors for {role}, which this bundle has not; it has: {have or 'none'}"
        )
    if role in quantized:
        raise InputError(
            f"{embedding.file}: the {role} is quantized ({quantized[role]}), and what is added are float vectors: load a float "
            f"precision; {EXPORT}"
        )
    engine = engines[role]
    if not isinstance(engine, Adaptable):
        raise EngineError(
            f"{embedding.file}: the {role} runs on {type(engine).__name__}, whose compiled weights cannot be changed; {EXPORT}"
        )
    return engine.weights()[table_name(engine)]


def table_name(engine: Adaptable) -> str:
    """What the table of vectors is called. Raises EngineError for a graph without one."""
    found = [name for name, shape in engine.weights().items() if name.endswith(TABLE) and len(shape) == 2]
    if len(found) != 1:
        raise EngineError(f"this text encoder's graph has no table of vectors by the name {TABLE}; {EXPORT}")
    return found[0]


class Extended:
    """An engine with rows of its table replaced, whatever else its weights are changed by later."""

    def __init__(self, engine: Engine, rows: Mapping[int, NDArray[np.float32]]) -> None:
        assert isinstance(engine, Adaptable)
        self._engine: Any = engine
        self.signature = engine.signature
        self._rows = dict(rows)
        self._name = table_name(engine)
        self._changed = False
        self.with_weights({})()

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        """As the engine's own."""
        answers: Arrays = self._engine.run(inputs)
        return answers

    def close(self) -> None:
        """Close the engine."""
        self._engine.close()

    def __getattr__(self, name: str) -> Any:
        # what an engine may have beside the protocol: `most_rows`, `pad`
        return getattr(self._engine, name)

    @property
    def changed(self) -> bool:
        """Whether weights were changed beside the rows."""
        return self._changed

    def weights(self) -> Mapping[str, tuple[int, ...]]:
        """As the engine's own."""
        shapes: Mapping[str, tuple[int, ...]] = self._engine.weights()
        return shapes

    def with_weights(self, changes: Mapping[str, Change]) -> Callable[[], None]:
        """As the engine's own, with the rows beside the changes."""
        other = changes.get(self._name)

        def extended(table: NDArray[np.float32]) -> NDArray[np.float32]:
            table = np.array(table if other is None else other(table), dtype=np.float32)
            for row, vector in self._rows.items():
                table[row] = vector
            return table

        ready: Callable[[], None] = self._engine.with_weights({**changes, self._name: extended})

        def take_effect() -> None:
            ready()
            self._changed = bool(changes)

        return take_effect


def _not_a_list(given: object) -> InputError:
    return InputError(
        f'textual inversions are a list of (file, token), as in [("cat.safetensors", "<cat>")], not {given!r}'
    )
