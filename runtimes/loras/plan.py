"""Which weight changes by what: LoRA layers held against the weights that a bundle's graphs have."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .file import Layer
from .names import DENOISER, Place, places, roles_of

Shapes = Mapping[str, tuple[int, ...]]
"""Weights by name, with the shapes that the checkpoint has them in."""
Weights = Callable[[str], Shapes]
"""The weights of a component by its role. Raises where they cannot be changed."""
EXAMPLES = 3


@dataclass
class Update:
    """What is added to one weight: layers with their scales, each to the whole or to some rows."""

    terms: list[tuple[Layer, float, Place]] = field(default_factory=list)

    def __call__(self, weight: NDArray[np.float32]) -> NDArray[np.float32]:
        """The changed weight, float32, as a new array."""
        changed = np.array(weight, dtype=np.float32)
        for layer, scale, place in self.terms:
            rows = len(changed) // place.parts
            part = changed[place.part * rows : (place.part + 1) * rows]
            part += layer.delta(scale).reshape(part.shape)
        return changed


@dataclass(frozen=True)
class Lora:
    """A LoRA file and how strongly it acts."""

    file: Path
    scale: float
    layers: Sequence[Layer]


Plan = dict[str, dict[str, Update]]
"""What changes, by role and weight."""


def plan(loras: Sequence[Lora], roles: Mapping[str, object], weights: Weights) -> Plan:
    """Find every layer's weight. Raises InputError for a LoRA of which a layer finds none, or one of another shape."""
    found: dict[str, dict[str, Update]] = defaultdict(dict)
    for lora in loras:
        layers: dict[str, list[Layer]] = defaultdict(list)
        for layer in lora.layers:
            layers[layer.target].append(layer)
        for target, own in layers.items():
            for role, name, layer, place in _matched(lora, target, own, roles, weights):
                if lora.scale:
                    found[role].setdefault(name, Update()).terms.append((layer, lora.scale, place))
    return found


def _matched(
    lora: Lora, target: str, layers: list[Layer], roles: Mapping[str, object], weights: Weights
) -> list[tuple[str, str, Layer, Place]]:
    """(role, weight, layer, place) for every layer, in each component that has the weight."""
    meant = roles_of(target, roles)
    if not meant:
        what = "a denoiser (unet or transformer)" if target == DENOISER else target
        raise InputError(
            f"{lora.file} has {len(layers)} layers for {what}, such as {layers[0].label}, and there is none here; there are: "
            f"{', '.join(roles)}"
        )
    shapes = {role: weights(role) for role in meant}
    known = {name: shape for role in reversed(meant) for name, shape in shapes[role].items()}
    table = places(known)
    fits = [(layer, place) for layer in layers if (place := table.get(layer.module)) and _fits(layer, place, known)]
    if len(fits) < len(layers):
        raise _misfit(lora, meant[0], layers, table, known)
    return [
        (role, place.weight, layer, place)
        for layer, place in fits
        for role in meant
        if shapes[role].get(place.weight) == known[place.weight]
    ]


def _fits(layer: Layer, place: Place, known: Shapes) -> bool:
    """Equal shapes, kernels of one pixel apart: a 1 x 1 convolution is a linear layer, and files have either."""
    out, *rest = known[place.weight]
    return _squeezed(layer.shape) == _squeezed((out // place.parts, *rest))


def _squeezed(shape: Sequence[int]) -> tuple[int, ...]:
    kernel = tuple(shape[2:])
    return tuple(shape[:2]) if all(size == 1 for size in kernel) else tuple(shape)


def _misfit(lora: Lora, role: str, layers: list[Layer], table: Mapping[str, Place], known: Shapes) -> InputError:
    missing = [layer for layer in layers if layer.module not in table]
    wrong = [layer for layer in layers if layer.module in table and not _fits(layer, table[layer.module], known)]
    said = [f"{len(layers) - len(missing) - len(wrong)} of its {len(layers)} layers for the {role} fit"]
    if missing:
        said.append(f"{len(missing)} name no weight of it, such as {_some(layer.label for layer in missing)}")
    if wrong:
        pairs = (
            f"{layer.label} for {list(layer.shape)} where {table[layer.module].weight} is {list(known[table[layer.module].weight])}"
            for layer in wrong
        )
        said.append(f"{len(wrong)} are of another shape, such as {_some(pairs)}")
    weights = [name for name, shape in known.items() if len(shape) > 1]
    said.append(f"the {role} has {_some(weights) or 'no weights by their names'}")
    return InputError(
        f"{lora.file} does not fit: {'; '.join(said)}. Is it for another base model? Each LoRA fits the kind it was trained on"
    )


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    more = f" and {len(listed) - EXAMPLES} more" if len(listed) > EXAMPLES else ""
    return ", ".join(listed[:EXAMPLES]) + more
