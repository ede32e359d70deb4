"""Core ML: weights as small integers or as indices into tables, and activations in 8 bits, in a bundle's own packages.

The saved program is changed, not converted again: names, sizes and everything that is kept stay what they were, to the
bit. coremltools.optimize would hold the whole program in memory and write another of its own making.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from ingot.exporters.coreml_chunks import package_files
from ingot.exporters.coreml_convert import operation_count
from ingot.exporters.graph_file import GraphFile, Progress
from ingot.runtimes.engines._coreml import stored_packages
from ingot.runtimes.errors import InputError, unknown

from ._coreml_activations import Calls, Pairs, ranges, rounded_inputs
from ._coreml_compress import Linear, Palette, write_package
from ._coreml_layers import Package, layers_of
from .scheme import Layer, Source

SCHEMES = {
    "int8-weights": "int8 weights with a scale for each output channel, unpacked by Core ML; iOS16 and later",
    "int4-weights": "int4 weights with a scale for each 32 input channels of an output channel; iOS18 and later",
    "int8-static": "int8 weights, and int8 inputs of convolutions and linear layers; iOS17 and later",
    "palette-8": "weights as 8 bits into a table of 256 values; iOS16 and later",
    "palette-6": "weights as 6 bits into a table of 64 values; iOS16 and later",
    "palette-4": "weights as 4 bits into a table of 16 values; iOS16 and later",
}
SYSTEMS = {5: "iOS15", 6: "iOS16", 7: "iOS17", 8: "iOS18"}  # by the number of the operation set
NEEDED = {"int4-weights": 8, "int8-static": 7}  # others need 6
ACTIVATIONS = ("symmetric", "affine")


@dataclass(frozen=True)
class Options:
    """The options of `quantize`, each for the schemes that it names."""

    block_size: int = 32
    rows: int | None = None
    min_psnr: float | None = None
    activations: str = "symmetric"

    def check(self, scheme: str) -> None:
        """Raise InputError for a value that cannot be, or an option that the scheme has no use for."""
        for option, value in (("block_size", self.block_size), ("rows", self.rows)):
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise InputError(f"{option}={value!r}: a whole number of at least 1 is needed")
        floor = self.min_psnr
        if floor is not None and (isinstance(floor, bool) or not isinstance(floor, (int, float)) or not floor > 0):
            raise InputError(f"min_psnr={floor!r}: decibels above 0 are needed, such as 40")
        if self.activations not in ACTIVATIONS:
            raise unknown("form of int8 activations", self.activations, ACTIVATIONS)
        uses = {
            "block_size": ("int4-weights", self.block_size != 32),
            "rows": ("palette-", self.rows is not None),
            "min_psnr": ("palette-", floor is not None),
            "activations": ("int8-static", self.activations != "symmetric"),
        }
        for option, (wanted, given) in uses.items():
            if given and not scheme.startswith(wanted):
                raise InputError(f"{option} is for {wanted}{'N' if wanted.endswith('-') else ''}, not for {scheme}")

    def compressor(self, scheme: str, opset: int) -> Linear | Palette:
        """What compresses one weight."""
        if scheme.startswith("palette-"):
            return Palette(opset, int(scheme.removeprefix("palette-")), self.rows, self.min_psnr)
        return Linear(opset, 4, self.block_size) if scheme == "int4-weights" else Linear(opset)


def layers(source: Source, scheme: str) -> list[Layer]:
    """The convolutions, linear layers and embeddings of 2048 weights and more, in the order of the program."""
    return list(layers_of(_packages(source, scheme)).values())


def quantize(
    source: Source,
    folder: Path,
    *,
    scheme: str,
    keep: Collection[str] = (),
    calls: Sequence[Mapping[str, NDArray[Any]]] = (),
    name: str,
    progress: Progress | None = None,
    block_size: int = 32,
    rows: int | None = None,
    min_psnr: float | None = None,
    activations: str = "symmetric",
) -> GraphFile:
    """Write the packages of a graph compressed, as `<name>.mlpackage`, or `<name>_1.mlpackage` and so on for several.

    `block_size` input channels share a scale of int4 weights: the largest number up to it that divides them. `rows` output
    channels share a palette's table, in place of all (iOS18). With `min_psnr` each layer of a palette has the fewest of 1,
    2, 3 (iOS18), 4, 6 and 8 bits, up to the scheme's, with

        20 log10(max |w| / rms(w - stored)) >= min_psnr   decibels;

    a layer that holds it with none of them has the most. int8-static rounds `activations` symmetric about 0, as coremltools
    does unless told otherwise, or affine, with a zero point of their own. Raises InputError for a scheme or options that
    these packages cannot have, for names in `keep` that are none of theirs, and for int8-static
    without calls of the graph's sizes.
    """
    options = Options(block_size, rows, min_psnr, activations)
    packages = _packages(source, scheme)
    calls = [call for call in calls if source.signature.admits(call)]
    _check(scheme, packages, keep, calls, options)
    say = progress or (lambda _, __: None)
    chosen = [{weight.constant for weight in package.weights if weight.name not in keep} for package in packages]
    pairs = _pairs(source, packages, chosen, calls, options, say) if scheme == "int8-static" else None
    several = len(packages) > 1
    written = [f"{name}_{number + 1}.mlpackage" if several else f"{name}.mlpackage" for number in range(len(packages))]
    for number, (package, target) in enumerate(zip(packages, written, strict=True)):
        compress = options.compressor(scheme, package.opset)
        write_package(
            package, folder / target, dict.fromkeys(chosen[number], compress), scheme,
            pairs[number] if pairs else (lambda _: []), partial(_tell, say, number, len(packages)),
        )  # fmt: skip
    return _graph_file(source, folder, scheme, written)


def _tell(say: Progress, before: int, count: int, done: float) -> None:
    say("compress", (before + done) / count)


def _graph_file(source: Source, folder: Path, scheme: str, packages: Sequence[str]) -> GraphFile:
    files = [file for package in packages for file in package_files(folder / package)]
    return GraphFile(
        role=source.role,
        path=files[0],
        extra_files=tuple(files[1:]),
        dtype=scheme,
        static=source.static,
        signature=source.signature,
        node_count=operation_count(folder / package for package in packages),
        stored={**source.stored, "packages": list(packages)},
    )


def _packages(source: Source, scheme: str) -> list[Package]:
    """The packages of a graph. Raises InputError for a scheme that they cannot have."""
    if scheme not in SCHEMES:
        raise unknown("scheme for Core ML", scheme, SCHEMES)
    names = stored_packages(source.stored).packages
    packages = [Package(source.path.parent.parent / name) for name in names]
    _require(packages, NEEDED.get(scheme, 6), scheme)
    return packages


def _require(packages: Sequence[Package], opset: int, what: str) -> None:
    oldest = min(packages, key=lambda package: package.opset)
    if oldest.opset < opset:
        raise InputError(
            f"{what} needs {SYSTEMS[opset]}, and {oldest.path.name} was written for {SYSTEMS[oldest.opset]}: "
            f"export it with --set coreml.deployment_target={SYSTEMS[opset]}"
        )


def _check(scheme: str, packages: Sequence[Package], keep: Collection[str], calls: Calls, options: Options) -> None:
    options.check(scheme)
    if options.rows is not None:
        _require(packages, 8, "rows, several tables to a weight,")
    missing = sorted(set(keep) - set(layers_of(packages)))
    if missing:
        raise InputError(f"{packages[0].path.name} has no layers {', '.join(missing)}; `layers` names those it has")
    if scheme == "int8-static" and not calls:
        raise InputError(
            "int8-static needs recorded calls of the graph's sizes, from which the ranges of activations come: "
            "--calibrate PROMPTS"
        )


def _pairs(
    source: Source,
    packages: Sequence[Package],
    chosen: Sequence[Collection[str]],
    calls: Calls,
    options: Options,
    say: Progress,
) -> list[Callable[[Any], list[Any]]]:
    rounded = [rounded_inputs(package, names) for package, names in zip(packages, chosen, strict=True)]
    wanted = {value for one in rounded for value in one.values()}
    found = ranges(source.path, source.signature, source.stored, calls, wanted, say)
    affine = options.activations == "affine"
    return [Pairs(package, values, found, affine) for package, values in zip(packages, rounded, strict=True)]
