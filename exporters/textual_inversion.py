"""Textual inversions added to a checkpoint before it is cast: new tokens, and new rows in the text encoders' tables."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ingot.runtimes.bundle import describe_file
from ingot.runtimes.errors import InputError
from ingot.runtimes.manifest import AddedToken
from ingot.runtimes.textual_inversion import TOKENIZERS, Embedding, Inversions, read_embeddings


def with_textual_inversions(pipe: Any, inversions: Inversions) -> tuple[Any, tuple[AddedToken, ...]]:
    """A copy of the pipeline whose tokenizers and text encoders know these tokens, and what a bundle says of them; as
    diffusers' `load_textual_inversion`.

    Raises InputError for files that are none, or are for another base, and for tokens that there are already.
    """
    given = read_embeddings(inversions)
    pipe = copy.copy(pipe)  # the caller's keeps its own
    roles = {role for embedding in given for role in embedding.vectors}
    for role in sorted(roles):
        if getattr(pipe, role, None) is None:
            files = ", ".join(str(embedding.file) for embedding in given if role in embedding.vectors)
            raise InputError(f"{files}: vectors for {role}, which {type(pipe).__name__} has not")
        words = TOKENIZERS[role]
        own = {role: copy.deepcopy(getattr(pipe, role)), words: copy.deepcopy(getattr(pipe, words))}
        for embedding in given:
            if role in embedding.vectors:
                _add(embedding, role, own[role], own[words])
        pipe.register_modules(**own)
    return pipe, tuple(
        AddedToken(file=str(one.file), sha256=describe_file(one.file).sha256, token=one.token) for one in given
    )


def add_again(pipe: Any, added: Sequence[AddedToken]) -> Any:
    """The pipeline with what a bundle says it was made with. Raises InputError where a file is gone or another by now."""
    if not added:
        return pipe
    for one in added:
        file = Path(one.file)
        if not file.is_file() or describe_file(file).sha256 != one.sha256:
            raise InputError(
                f"the bundle was made with the textual inversion {one.file} (sha256 {one.sha256[:16]}…), which is not there any more "
                "or another file by now: put it back"
            )
    return with_textual_inversions(pipe, [(one.file, one.token) for one in added])[0]


def _add(embedding: Embedding, role: str, encoder: Any, tokenizer: Any) -> None:
    vectors = torch.from_numpy(embedding.vectors[role])
    table = encoder.get_input_embeddings().weight
    if vectors.shape[1] != table.shape[1]:
        raise InputError(
            f"{embedding.file} has vectors of {vectors.shape[1]} numbers, and those of the {role} have {table.shape[1]}: is it for "
            "another base model?"
        )
    names = [embedding.token, *(f"{embedding.token}_{i}" for i in range(1, len(vectors)))]
    if there := [name for name in names if name in tokenizer.get_vocab()]:
        raise InputError(f"the token {there[0]!r} cannot be added: the tokenizer has it; give another name")
    tokenizer.add_tokens(names)
    ids = tokenizer.convert_tokens_to_ids(names)
    if max(ids) >= len(table):
        encoder.resize_token_embeddings(max(ids) + 1, mean_resizing=False)
    with torch.no_grad():
        encoder.get_input_embeddings().weight[ids] = vectors.to(table.dtype)
