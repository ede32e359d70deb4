"""FreeU: on the UNet's way up its own features are made stronger, and of the skipped ones the coarsest part weaker.

    h[:, :C/2] <- b h[:, :C/2],    x <- x + (s - 1) L(x)    at the two lowest resolutions, with b1, s1 and b2, s2

L keeps of x the frequencies -1 and 0 of each axis, those that diffusers scales between two Fourier transforms. Four of them
are two small products, with no transform and no complex numbers in the graph, for any size:

    L(x) = A x A' + B x B',    A = (1 + cos t) / n,   B = sin t / n,   t[j, k] = 2 pi (j - k) / n    for n rows, ' for columns

It is not exact: the picture changes, as with diffusers' `pipe.enable_freeu(s1, s2, b1, b2)`.

Source: Si, Huang, Jiang and Liu, "FreeU: Free Lunch in Diffusion U-Net", 2023 (arXiv 2309.11497), equations 3 to 6.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ingot.runtimes.errors import InputError

EXACT = False


class Factors(NamedTuple):
    """How much is left of the skipped features' coarsest part, and how much stronger the others are, at the lowest resolution
    and at the next."""

    s1: float
    s2: float
    b1: float
    b2: float

    def __str__(self) -> str:
        return ",".join(f"{factor:g}" for factor in self)


NAME = "apply_freeu"  # diffusers' function
DEFAULT = Factors(0.9, 0.2, 1.5, 1.6)  # the authors' for Stable Diffusion 1.5; 0.9,0.2,1.3,1.4 for XL


def value(text: str | None) -> Factors:
    """`s1,s2,b1,b2`, in diffusers' order. Raises InputError."""
    if text is None:
        return DEFAULT
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        found = []
    if len(found) != len(Factors._fields) or not all(math.isfinite(factor) and factor > 0 for factor in found):
        raise InputError(f"freeu={text}: four numbers above 0 are needed, s1,s2,b1,b2, such as freeu={DEFAULT}")
    return Factors(*found)


def applies(module: nn.Module) -> bool:
    """Whether the module has blocks on the way up that diffusers' FreeU changes."""
    return bool(_blocks(module))


@contextmanager
def applied(module: nn.Module, factors: Factors = DEFAULT) -> Iterator[None]:
    """Switch FreeU on as diffusers does, and put the products in the place of its Fourier transforms."""
    blocks = _blocks(module)
    # the blocks call it by its name in their own files, where it answers the same to others meanwhile, rounding apart
    files = {type(block).__module__: _forward(block).__globals__ for block in blocks}
    before = [{name: vars(block)[name] for name in Factors._fields if name in vars(block)} for block in blocks]
    originals = {name: file[NAME] for name, file in files.items()}
    for block in blocks:
        vars(block).update(factors._asdict())
    for file in files.values():
        file[NAME] = stronger_and_weaker
    try:
        yield
    finally:
        for name, file in files.items():
            file[NAME] = originals[name]
        for block, values in zip(blocks, before, strict=True):
            for name in Factors._fields:
                vars(block).pop(name)
            vars(block).update(values)


def stronger_and_weaker(
    resolution_idx: int, hidden_states: Tensor, res_hidden_states: Tensor, **factors: float
) -> tuple[Tensor, Tensor]:
    """A block's own features and the skipped ones, (batch, channels, height, width) each: diffusers' `apply_freeu`."""
    if resolution_idx not in (0, 1):
        return hidden_states, res_hidden_states
    b, s = (factors[f"{name}{resolution_idx + 1}"] for name in "bs")
    first, second = hidden_states.tensor_split((hidden_states.shape[1] // 2,), dim=1)
    return torch.cat([b * first, second], dim=1), weakened(res_hidden_states, s)


def weakened(x: Tensor, factor: float) -> Tensor:
    """`x` with its coarsest part times `factor`. In float32, as diffusers has it."""
    full = x.float()
    (a_rows, b_rows), (a_columns, b_columns) = (_coarsest(side, x.device) for side in x.shape[-2:])
    coarse = a_rows @ full @ a_columns + b_rows @ full @ b_columns
    return (full + (factor - 1) * coarse).to(x.dtype)


def _coarsest(side: Any, device: torch.device) -> tuple[Tensor, Tensor]:
    """A and B of one axis. Its length is a tensor here, so that nothing asks for its number while it is traced."""
    place = torch.arange(side, device=device).float()
    count = place.amax(dim=0) + 1
    turn = (2 * math.pi / count) * (place[:, None] - place)
    two = (count - 1).clamp(max=1)  # an axis of one has one frequency
    return (1 + two * turn.cos()) / count, turn.sin() / count


def _blocks(module: Any) -> list[nn.Module]:
    """Those of the way up that apply FreeU, when they have its factors."""
    blocks = getattr(module, "up_blocks", None)
    found = blocks.children() if isinstance(blocks, nn.Module) else ()
    return [block for block in found if NAME in _forward(block).__code__.co_names]


def _forward(block: nn.Module) -> Any:
    return inspect.unwrap(type(block).forward)
