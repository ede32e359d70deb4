"""The recorded calls that travel with a bundle: real inputs and the torch component's outputs, as .npz."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import BundleError

Call = tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]
"""Inputs and outputs of one call, by name."""


def save_calls(file: Path, calls: Sequence[Call]) -> None:
    """Write calls; keys are `0/inputs/sample`, `0/outputs/out_sample` and so on."""
    arrays = {
        f"{i}/{kind}/{name}": array
        for i, call in enumerate(calls)
        for kind, group in zip(("inputs", "outputs"), call, strict=True)
        for name, array in group.items()
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    # savez takes the names as keywords, which the stubs of NumPy confuse with its own
    np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def load_calls(file: Path) -> list[Call]:
    """Read what `save_calls` wrote. Raises BundleError for a file that is not that."""
    calls: dict[int, Call] = {}
    try:
        with np.load(file, allow_pickle=False) as stored:
            for key in stored.files:
                number, kind, name = key.split("/", 2)
                call = calls.setdefault(int(number), ({}, {}))
                call[("inputs", "outputs").index(kind)][name] = stored[key]
    except (ValueError, OSError) as error:
        raise BundleError(f"{file} holds no parity data: {error}") from error
    return [calls[i] for i in sorted(calls)]
