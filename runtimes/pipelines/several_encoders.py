"""Prompts of models that read them with several encoders, of which one pools."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..errors import InputError
from ..signature import Dim
from .common import as_list, check_array


def own_texts(call: Any, name: str, first: list[str]) -> list[str]:
    """What an encoder reads: its own prompts by this name, or the first encoder's. Raises InputError when the counts differ."""
    given = getattr(call, name)
    if not given:
        return first
    texts = as_list(given, name)
    if len(texts) not in (1, len(first)):
        raise InputError(f"{len(texts)} of {name} for {len(first)} prompts; give one, or one for each")
    return texts * len(first) if len(texts) == 1 else texts


def require_pooled(call: Any, wanted: tuple[Dim, ...]) -> None:
    """Raise InputError for embeddings without the pooled ones, or the other way round, and for pooled ones of another shape
    than `wanted`, (prompts, width)."""
    for name in ("", "negative_"):
        embeds, pooled = getattr(call, f"{name}prompt_embeds"), getattr(call, f"{name}pooled_prompt_embeds")
        if (embeds is None) != (pooled is None):
            raise InputError(f"{name}prompt_embeds and {name}pooled_prompt_embeds go together: give both or neither")
        check_pooled(f"{name}pooled_prompt_embeds", pooled, wanted)


def check_pooled(name: str, given: object, wanted: tuple[Dim, ...]) -> None:
    """Raise InputError for pooled embeddings of another shape."""
    if given is not None and check_array(name, given).shape != wanted:
        raise InputError(f"{name} has shape {check_array(name, given).shape}, not {wanted}")


def refuse_readings(call: Any, names: Iterable[str] = ("prompt_weighting", "long_prompts", "clip_skip")) -> None:
    """Raise InputError for ways to read a prompt that are for CLIP alone."""
    for name in names:
        if getattr(call, name):
            raise InputError(
                f"{name}={getattr(call, name)!r} is for models that read prompts with CLIP alone; leave it out"
            )
