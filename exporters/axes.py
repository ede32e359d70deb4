"""Names for the dimensions that differed between two recordings: `batch`, `height/8`, `height*width/256`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction

from ingot.runtimes.signature import Dim, read_dim

Axes = Mapping[str, int]
"""Sizes of one recording by name."""
Term = tuple[Fraction, tuple[str, ...]]
"""A factor and the sizes that it multiplies."""

# Shorter explanations first: a dimension that doubles with the batch is the batch, not a product that happens to.
_PRODUCTS = (("batch",), ("height",), ("width",), ("height", "width"), ("batch", "height", "width"))


def name_shapes(
    pairs: Mapping[str, tuple[Sequence[int], Sequence[int]]], axes: tuple[Axes, Axes]
) -> dict[str, tuple[Dim, ...]]:
    """The symbolic shape of each tensor of one graph, from its shapes in two recordings.

    A graph counts its own batch: where classifier-free guidance doubles it, every `2*batch` becomes `batch`.
    """
    terms = {
        name: [_explain(a, b, axes) if a != b else a for a, b in zip(*shapes, strict=True)]
        for name, shapes in pairs.items()
    }
    batches = [dim[0] for dims in terms.values() for dim in dims if isinstance(dim, tuple) and dim[1] == ("batch",)]
    unit = _gcd(batches) if batches else Fraction(1)
    return {name: tuple(_write(dim, unit) for dim in dims) for name, dims in terms.items()}


def distinguishable(first: Axes, second: Axes) -> bool:
    """Whether two recordings' sizes tell batch, height, width and area apart: each changes, by a ratio of its own."""
    ratios = [_value(product, second) / _value(product, first) for product in _PRODUCTS[:4]]
    return len({*ratios, Fraction(1)}) == len(ratios) + 1


def _explain(a: int, b: int, axes: tuple[Axes, Axes]) -> Term:
    for product in _PRODUCTS:
        factors = Fraction(a) / _value(product, axes[0]), Fraction(b) / _value(product, axes[1])
        if factors[0] == factors[1]:
            return factors[0], product
    return Fraction(1), (f"size_{a}_{b}",)


def _value(product: Iterable[str], axes: Axes) -> Fraction:
    return Fraction(math.prod(axes[name] for name in product))


def _gcd(factors: list[Fraction]) -> Fraction:
    denominator = math.lcm(*(factor.denominator for factor in factors))
    return Fraction(math.gcd(*(int(factor * denominator) for factor in factors)), denominator)


def _write(dim: int | Term, batch_unit: Fraction) -> Dim:
    if isinstance(dim, int):
        return dim
    factor, names = dim
    if names == ("batch",):
        factor /= batch_unit
    text = "*".join(names) if factor.numerator == 1 else "*".join((str(factor.numerator), *names))
    return text if factor.denominator == 1 else f"{text}/{factor.denominator}"


def in_terms_of(dim: str, known: Iterable[str]) -> str:
    """A dimension as a product of one that the inputs have: `height` is `height/8 * 8` to a graph fed with `height/8`.

    optimum sizes its output buffers by evaluating such names, its own reading `latent_height * 8`.
    """
    names = sorted(known)
    if dim in names:
        return dim
    factor, product = read_dim(dim)
    for name in names:
        other, same = read_dim(name)
        if same == product:
            ratio = factor / other
            text = name if ratio.numerator == 1 else f"{name} * {ratio.numerator}"
            return text if ratio.denominator == 1 else f"{text} / {ratio.denominator}"
    return dim
