"""How a TensorRT plan is built, as data: the sizes it takes and the builder's settings. Needs no TensorRT."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from fractions import Fraction
from typing import Any

import numpy as np

from ..errors import InputError, unknown
from ..signature import Dim, Signature

Range = tuple[int, int, int]
"""The smallest size, the one to be fastest at, the largest."""
Shape = tuple[int, ...]

HARDWARE = ("none", "ampere_plus", "same_compute_capability")
# Batch, and pixels by side, of models that say nothing else.
USUAL: dict[str, Range] = {"batch": (1, 2, 8), "height": (256, 512, 1024), "width": (256, 512, 1024)}
# A dimension of no other meaning is named after its two recorded sizes.
NAMELESS = re.compile(r"size_\d+_\d+")


@dataclass(frozen=True)
class BuildOptions:
    """What goes into a plan besides its graph.

    `sizes` are ranges by name: batch, height, width (pixels) and whatever else the signature names. `tf32` lets float32
    products round their factors to 10 bits, 5e-4 away, which float32's parity limit does not allow. `workspace` is in
    bytes, all of the GPU's memory when it is None.
    """

    sizes: dict[str, Range] = field(default_factory=dict)
    optimization_level: int = 3
    tf32: bool = False
    refit: bool = False
    weight_streaming: bool = False
    version_compatible: bool = False
    hardware_compatibility: str = "none"
    workspace: int | None = None

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return {**asdict(self), "sizes": {name: list(sizes) for name, sizes in self.sizes.items()}}


def build_options(given: Mapping[str, Any]) -> BuildOptions:
    """Options from what a user or a manifest says. Raises InputError listing everything that cannot be used."""
    known = {option.name for option in fields(BuildOptions)}
    for name in given:
        if name not in known:
            raise unknown("TensorRT build option", name, known)
    options = BuildOptions(**{**given, "sizes": ranges(given.get("sizes") or {})})
    problems = []
    if options.optimization_level not in range(6):
        problems.append(f"optimization_level={options.optimization_level!r} is not one of 0 to 5")
    if options.hardware_compatibility not in HARDWARE:
        problems.append(
            f"hardware_compatibility={options.hardware_compatibility!r} is not one of {', '.join(HARDWARE)}"
        )
    if options.workspace is not None and not (isinstance(options.workspace, int) and options.workspace > 0):
        problems.append(f"workspace={options.workspace!r} is not a number of bytes")
    for name in ("tf32", "refit", "weight_streaming", "version_compatible"):
        if not isinstance(getattr(options, name), bool):
            problems.append(f"{name}={getattr(options, name)!r} is neither true nor false")
    if problems:
        raise InputError("TensorRT build options: " + "; ".join(problems))
    return options


def ranges(sizes: Any) -> dict[str, Range]:
    """Ranges by name from what a user says: `[min, opt, max]`, or one number. Raises InputError."""
    if not isinstance(sizes, Mapping):
        raise InputError(f'sizes={sizes!r} is not a mapping such as {{"batch": [1, 2, 8], "height": [256, 512, 1024]}}')
    return {name: _range(name, size) for name, size in sizes.items()}


def _range(name: str, size: Any) -> Range:
    """One number is a fixed size."""
    numbers = (size,) * 3 if isinstance(size, int) else tuple(size) if isinstance(size, Sequence) else ()
    whole = all(isinstance(number, int) and not isinstance(number, bool) for number in numbers)
    if len(numbers) != 3 or not whole or not 1 <= numbers[0] <= numbers[1] <= numbers[2]:
        raise InputError(f"sizes: {name}={size!r} is not [min, opt, max] with 1 <= min <= opt <= max")
    return numbers[0], numbers[1], numbers[2]


def profile(signature: Signature, sizes: Mapping[str, Range]) -> dict[str, tuple[Shape, Shape, Shape]]:
    """The smallest, best and largest shape of each input that has names for dimensions; none for a static graph.

    >>> from ingot.runtimes.signature import Signature, TensorSpec
    >>> latents = TensorSpec("sample", "float16", ("batch", 4, "height/8", "width/8"))
    >>> profile(Signature((latents,), ()), {"batch": (1, 2, 4), "height": (256, 512, 1024), "width": (512, 512, 512)})
    {'sample': ((1, 4, 32, 64), (2, 4, 64, 64), (4, 4, 128, 64))}

    Raises InputError for a size that no graph can have, and for one that must be given.
    """
    require_sizes(signature, sizes)
    all_sizes = {name: sizes.get(name) or _usual(name) for name in names(signature)}
    shapes = {}
    for spec in signature.inputs:
        if any(isinstance(dim, str) for dim in spec.shape):
            ends = ({name: size[end] for name, size in all_sizes.items()} for end in range(3))
            smallest, best, largest = (tuple(evaluate(dim, end) for dim in spec.shape) for end in ends)
            shapes[spec.name] = (smallest, best, largest)
    return shapes


def require_sizes(signature: Signature, sizes: Iterable[str]) -> None:
    """Raise InputError for a misspelt size. Those that other graphs of a bundle have are let through: a text encoder is
    given its denoiser's height too."""
    known = {*names(signature), *USUAL}
    for name in sizes:
        if name not in known and not NAMELESS.fullmatch(str(name)):
            raise unknown("size", name, known)


def names(signature: Signature) -> list[str]:
    """The sizes that the inputs' dimensions are named after: batch, height, width …"""
    dims = (dim for spec in signature.inputs for dim in spec.shape if isinstance(dim, str))
    return list(dict.fromkeys(name for dim in dims for name in _read(dim)[1]))


def evaluate(dim: Dim, sizes: Mapping[str, int]) -> int:
    """A dimension as a number: `height*width/64`, rounded up, as strided convolutions do.

    >>> evaluate("height/8", {"height": 500})
    63
    """
    if isinstance(dim, int):
        return dim
    factor, product = _read(dim)
    for name in product:
        factor *= sizes[name]
    return -int(-factor // 1)


def seen(signature: Signature, shapes: Iterable[Mapping[str, Sequence[int]]]) -> dict[str, tuple[int, int]]:
    """The smallest and the largest that each size was in these shapes of inputs, from the dimensions that tell."""
    found: dict[str, list[int]] = {}
    for call in shapes:
        for spec in signature.inputs:
            for dim, size in zip(spec.shape, call[spec.name], strict=True):
                factor, product = _read(dim) if isinstance(dim, str) else (Fraction(1), ())
                if len(product) == 1:
                    found.setdefault(product[0], []).append(int(size / factor))
    return {name: (min(sizes), max(sizes)) for name, sizes in found.items()}


def widened(sizes: Mapping[str, Range], by: Mapping[str, tuple[int, int]]) -> dict[str, Range]:
    """Ranges that hold these sizes too; the best one stays."""
    return {
        name: (min(low, by[name][0]), best, max(high, by[name][1])) if name in by else (low, best, high)
        for name, (low, best, high) in sizes.items()
    }


def outside(shape: Sequence[int], limits: Sequence[Sequence[int]]) -> bool:
    """Whether a shape is smaller than the first or larger than the last of a profile's."""
    sizes = np.asarray(shape)
    return bool(np.any(sizes < np.asarray(limits[0])) or np.any(sizes > np.asarray(limits[-1])))


def _usual(name: str) -> Range:
    if name in USUAL:
        return USUAL[name]
    recorded = sorted(int(number) for number in name.split("_") if number.isdigit())  # size_77_154: two recordings
    if not recorded:
        raise InputError(f"the graph has a dimension {name!r}; sizes must say its [min, opt, max]")
    return recorded[0], recorded[-1], recorded[-1]


def _read(dim: str) -> tuple[Fraction, tuple[str, ...]]:
    """`2*height*width/64` as a factor and the names that it multiplies."""
    text, _, denominator = dim.partition("/")
    parts = text.split("*")
    number = int(parts.pop(0)) if parts[0].isdigit() else 1
    return Fraction(number, int(denominator or 1)), tuple(parts)
