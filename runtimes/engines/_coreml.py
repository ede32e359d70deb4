"""A bundle's inputs as a Core ML package takes them, its outputs as a bundle names them, and one package behind another.

Packages have the names and layouts that Apple's Swift package reads, which are not a bundle's. This knows nothing of
coremltools: whatever runs a package goes in as a function.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..errors import EngineError, InputError
from ..signature import Dim, Signature
from . import Arrays, fit

# One part of a path, which neither leaves a folder nor reads as an option, a pattern or a command.
PACKAGE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*\.mlpackage")


@dataclass(frozen=True)
class Feature:
    """An input of a package: its name there, its dtype, and how its shape comes from a bundle's.

    `layout` is `same`; `channels_first`, (batch, sequence, channels) as (batch, channels, 1, sequence); `rows`, a scalar
    once for each row of the batch; or `one`, a scalar as an array of one.
    """

    name: str
    dtype: str
    layout: str

    def shape(self, ours: tuple[Dim, ...], batch: Dim) -> tuple[Dim, ...]:
        """The package's shape where the bundle's is `ours`."""
        if self.layout == "channels_first":
            return ours[0], ours[2], 1, ours[1]
        return {"rows": (batch,), "one": (1,)}.get(self.layout, ours)

    def array(self, ours: NDArray[Any], batch: int) -> NDArray[Any]:
        """The package's array for the bundle's."""
        array = ours
        if self.layout == "channels_first":
            array = ours.transpose(0, 2, 1)[:, :, None]
        elif self.layout in ("rows", "one"):
            array = np.full(batch if self.layout == "rows" else 1, ours)
        return np.ascontiguousarray(array, self.dtype)


class Packages(msgspec.Struct, frozen=True, kw_only=True):
    """What a bundle's manifest keeps of a Core ML graph.

    `packages` lie beside each other and run in this order. `inputs` and `outputs` are by the bundle's names. A graph of
    several sizes has the `shapes` of the input that changes, or the least and most of each open dimension in `ranges`.
    """

    packages: tuple[str, ...]
    precision: str
    inputs: dict[str, Feature]
    outputs: dict[str, str]
    attention: str
    deployment_target: str
    compute_units: str
    shapes: dict[str, tuple[tuple[int, ...], ...]] = {}
    ranges: dict[str, tuple[int, int]] = {}


def stored_packages(stored: Mapping[str, Any]) -> Packages:
    """What a manifest stores, read back.

    Raises EngineError when it is not of a Core ML graph, or names a package as none in a bundle is named.
    """
    try:
        packages = msgspec.convert(dict(stored), Packages)
    except msgspec.ValidationError as error:
        raise EngineError(f"the manifest's options are not those of a Core ML graph: {error}") from error
    if not packages.packages:
        raise EngineError("the manifest's options are not those of a Core ML graph: they name no packages")
    require_names(packages.packages)
    return packages


def require_names(names: Iterable[str]) -> None:
    """Raise EngineError listing the names that are not those of packages beside each other: a manifest may hold any."""
    wrong = [name for name in names if not PACKAGE_NAME.fullmatch(name)]
    if wrong:
        raise EngineError(
            f"{', '.join(map(repr, wrong))}: no name of a Core ML package in a bundle, which is letters, digits, _ and -, "
            "ending in .mlpackage, such as 'Unet.mlpackage'"
        )


@dataclass(frozen=True)
class Stage:
    """One package, opened: the names that it takes, and what computes its outputs."""

    inputs: tuple[str, ...]
    predict: Callable[[Arrays], Mapping[str, NDArray[Any]]]


class PackagedGraph:
    """A graph of one package, or of several that feed each other. Safe from several threads where its stages are."""

    def __init__(self, signature: Signature, packages: Packages, stages: Sequence[Stage]) -> None:
        self.signature = signature
        self.packages = packages
        self.most_rows = packages.ranges.get("batch", (1, None))[1]
        self._stages: tuple[Stage, ...] | None = tuple(stages)

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        """Compute every output; floats are cast to the graph's own precision.

        Raises InputError for inputs that do not fit, EngineError once the graph is closed.
        """
        stages = self._stages
        if stages is None:
            raise EngineError("this Core ML graph was closed; open it again")
        fed = fit(self.signature, inputs)
        self._check_sizes(fed)
        batch = len(fed[self.signature.inputs[0].name])
        values = {feature.name: feature.array(fed[ours], batch) for ours, feature in self.packages.inputs.items()}
        for stage in stages:
            values |= stage.predict({name: values[name] for name in stage.inputs})
        # copied: what a package answers may be memory of its own
        return {s.name: np.array(values[self.packages.outputs[s.name]], s.dtype) for s in self.signature.outputs}

    def close(self) -> None:
        """Let go of the packages. A second call does nothing."""
        self._stages = None

    def _check_sizes(self, inputs: Arrays) -> None:
        problems = [
            f"{name!r} has shape {list(inputs[name].shape)}; the package takes {_either(map(list, shapes))}"
            for name, shapes in self.packages.shapes.items()
            if inputs[name].shape not in shapes
        ]
        for spec in self.signature.inputs:
            for size, dim in zip(inputs[spec.name].shape, spec.shape, strict=True):
                least, most = self.packages.ranges.get(str(dim), (size, size))
                if not least <= size <= most:
                    problems.append(f"{spec.name!r} has {dim} = {size}; the package takes {least} to {most}")
        if problems:
            raise InputError("; ".join(dict.fromkeys(problems)))


def _either(items: Iterable[Any]) -> str:
    return " or ".join(str(item) for item in items)
