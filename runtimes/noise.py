"""The noise of `torch.Generator("cpu")`, without torch.

MT19937 (Matsumoto & Nishimura 1998) behind Box & Muller's transform (1958): z = sqrt(-2 ln u1) (cos 2πu2, sin 2πu2). Which
words of the stream make which value is torch's own (aten/src/ATen/native/cpu/DistributionTemplates.h). Its kernels for
plain C++, AVX2 and AVX-512 differ among themselves by 1.8e-6; this agrees with them as closely, not to the bit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from .errors import InputError

Array = NDArray[Any]

_BLOCK = 16  # torch vectorises draws of at least this many values, in blocks of as many
_SEEDS = range(-(2**63), 2**64)  # what torch's manual_seed takes


class Generator:
    """Stands for `torch.Generator().manual_seed(seed)`: the same stream, within 2e-6 for normal values.

    Without a seed it starts anywhere. Raises InputError for a seed that torch would not take.

    >>> Generator(0).randn((2,)).round(4).tolist()
    [1.5410000085830688, -0.29339998960494995]
    """

    def __init__(self, seed: int | None = None) -> None:
        if seed is None:
            seed = int(np.random.RandomState().randint(0, 2**32, dtype=np.uint32))
        if isinstance(seed, bool | np.bool_) or not isinstance(seed, int | np.integer) or int(seed) not in _SEEDS:
            raise InputError(f"a seed is a whole number from -2**63 to 2**64-1, not {seed!r}")
        self.seed = int(seed)
        self._words = np.random.RandomState(self.seed % 2**32)
        self._spare: float | None = None  # the sine half of the last pair; draws of 16 and more leave it alone

    def randn(self, shape: Sequence[int], dtype: DTypeLike = np.float32) -> Array:
        """Standard normal values of `shape`: `torch.randn(shape, generator=self, dtype=dtype)`."""
        count, kind = math.prod(shape), np.dtype(dtype)
        values = self._few(count) if count < _BLOCK else self._many(count, kind)
        return values.reshape(tuple(shape)).astype(kind)

    def rand(self, shape: Sequence[int], dtype: DTypeLike = np.float32) -> Array:
        """Uniform values in [0, 1): `torch.rand`, for float32 and float64. Raises InputError for another dtype."""
        kind = np.dtype(dtype)
        if kind not in (np.float32, np.float64):
            raise InputError(f"rand draws float32 or float64, not {kind}")
        return self._uniform(math.prod(shape), kind).reshape(tuple(shape))

    def _uniform(self, count: int, kind: np.dtype[Any]) -> Array:
        """24 bits of one word for each value, or 53 bits of two words, high word first, for float64."""
        if kind == np.float64:
            words = self._raw(2 * count).astype(np.uint64)
            return ((words[0::2] << np.uint64(32) | words[1::2]) & np.uint64(2**53 - 1)) * 2.0**-53
        return (self._raw(count) & np.uint32(2**24 - 1)).astype(np.float32) * np.float32(2.0**-24)

    def _raw(self, count: int) -> NDArray[np.uint32]:
        return self._words.randint(0, 2**32, count, dtype=np.uint32)

    def _few(self, count: int) -> Array:
        """Fewer than 16: pairs in float64, the second of a pair kept for the next call."""
        values: list[float] = [] if self._spare is None or not count else [self._spare]
        if values:
            self._spare = None
        while len(values) < count:
            u1, u2 = (float(u) for u in self._uniform(2, np.dtype(np.float64)))
            radius, angle = math.sqrt(-2 * math.log1p(-u2)), 2 * math.pi * u1
            values += [radius * math.cos(angle), radius * math.sin(angle)]
        if len(values) > count:
            self._spare = values.pop()
        return np.array(values, dtype=np.float64)

    def _many(self, count: int, kind: np.dtype[Any]) -> Array:
        """At least 16: whole blocks; a remainder makes the last 16 values anew from 16 fresh uniforms."""
        work = kind if kind == np.float64 else np.dtype(np.float32)
        whole = count - count % _BLOCK
        # Measured with torch 2.13: float32 and float64 draw the remainder's uniforms and throw them away, float16 and
        # bfloat16 do not, so that their noise is the float32 noise cast only where nothing remains.
        drawn = self._uniform(count if kind in (np.float32, np.float64) else whole, work)[:whole]
        values = np.empty(count, dtype=work)
        values[:whole] = _box_muller(drawn)
        if whole < count:
            values[-_BLOCK:] = _box_muller(self._uniform(_BLOCK, work))
        return values


def _box_muller(uniforms: Array) -> Array:
    """Normal values of uniform ones, (16 n,): in each block the cosines lie before the sines. In place where it can be:
    fresh arrays of this size cost more than the arithmetic."""
    blocks = uniforms.reshape(-1, 2, _BLOCK // 2)
    one, two_pi = blocks.dtype.type(1), blocks.dtype.type(2 * math.pi)
    radius, angle = one - blocks[:, 0], two_pi * blocks[:, 1]
    np.log(radius, out=radius)
    radius *= blocks.dtype.type(-2)
    np.sqrt(radius, out=radius)
    normal = np.empty_like(blocks)
    np.cos(angle, out=normal[:, 0])
    np.sin(angle, out=normal[:, 1])
    normal *= radius[:, None]
    return normal.ravel()


def randn_tensor(
    shape: Sequence[int], generator: Generator | Sequence[Generator] | None = None, dtype: DTypeLike = np.float32
) -> Array:
    """Normal values of `shape` as diffusers' function of this name draws them.

    One generator draws the whole batch at once; a list of them draws image by image, one each; none draws noise that
    nobody can repeat. Raises InputError when a list has not one generator for each image.
    """
    if generator is None:
        generator = Generator()
    if isinstance(generator, Generator):
        return generator.randn(shape, dtype)
    if len(generator) == 1:
        return generator[0].randn(shape, dtype)
    if len(generator) != shape[0]:
        raise InputError(f"{len(generator)} generators for a batch of {shape[0]}; give one, or one for each image")
    return np.concatenate([one.randn((1, *shape[1:]), dtype) for one in generator])
