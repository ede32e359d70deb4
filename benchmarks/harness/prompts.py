"""What pictures are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ingot.runtimes.errors import InputError

GENERIC = (
    "a lighthouse on a cliff at sunset",
    "a bowl of fruit on a wooden table",
    "a red bicycle leaning against a brick wall",
    "a portrait of an old sailor, oil on canvas",
)
OF_SHAPES = (
    "a large red ring on a blue background",
    "a small yellow star at the left on a purple background",
    "a medium white cross at the top on a green background",
    "a large black triangle on an orange background",
    "a medium purple circle at the right on a yellow background",
    "a small blue square at the bottom on a white background",
    "a large green star on a black background",
    "a medium orange ring at the left on a red background",
)


def read_prompts(given: str | Path | Sequence[str] | None, *, of_shapes: bool) -> tuple[str, ...]:
    """The prompts of a file, a line each, or of a list; where none are given captions of Shapes for that, else others.

    Raises InputError for a file that cannot be read and for none at all.
    """
    if given is None:
        return OF_SHAPES if of_shapes else GENERIC
    if isinstance(given, str | Path):
        try:
            lines = Path(given).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"cannot read prompts from {given} as UTF-8: {error}") from error
    else:
        lines = list(given)
    found = tuple(line.strip() for line in lines if line.strip())
    if not found:
        raise InputError(
            f"{given if isinstance(given, str | Path) else 'prompts'} has no prompt: one on each line is needed"
        )
    return found
