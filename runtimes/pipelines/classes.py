"""Classes that a model knows, by their numbers or their names."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

import numpy as np

from ..errors import InputError


def class_names(id2label: Mapping[str, str]) -> dict[str, int]:
    """Numbers by name, of a config's labels by number, where a label may be several names: "goldfish, Carassius auratus"."""
    found = {name.strip(): int(number) for number, label in id2label.items() for name in label.split(",")}
    return dict(sorted(found.items()))


def class_numbers(labels: object, count: int, names: Mapping[str, int]) -> list[int]:
    """The numbers of one or several classes. Raises InputError for a number outside of 0 to `count` - 1, and for an unknown
    name, with the known ones that are near."""
    several = labels.tolist() if isinstance(labels, np.ndarray) else labels
    several = list(several) if isinstance(several, Sequence) and not isinstance(several, str) else [several]
    if not several:
        raise InputError("class_labels is empty: give a class for each picture")
    return [_number(label, count, names) for label in several]


def _number(label: object, count: int, names: Mapping[str, int]) -> int:
    if isinstance(label, str):
        if label in names:
            return names[label]
        if not names:
            raise InputError(
                f"class {label!r}: this model's classes have no names; a number from 0 to {count - 1} would do"
            )
        near = difflib.get_close_matches(label.lower(), names, n=5, cutoff=0.5)
        hint = f"; near: {', '.join(near)}" if near else ""
        raise InputError(
            f"unknown class {label!r} of {len(names)} names{hint}; a number from 0 to {count - 1} would do too"
        )
    if isinstance(label, bool) or not isinstance(label, int | np.integer) or not 0 <= label < count:
        raise InputError(f"a class is a number from 0 to {count - 1} or a name, not {label!r}")
    return int(label)
