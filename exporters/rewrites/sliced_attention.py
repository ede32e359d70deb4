"""Self-attention in N slices of its queries, so that the scores of one slice are in memory at a time.

    A[:, i L/N : (i+1) L/N] = softmax(Q[:, i L/N : (i+1) L/N] K^T / sqrt(d)) V,   i = 0..N-1

which is exact, since softmax runs over the keys: L x L scores become L/N x L. What is sliced is torch's attention function,
whichever processor calls it, so this goes with fused projections and with token merging. Source: diffusers'
`SlicedAttnProcessor`, which slices over the rows of the batch and the heads; a graph of free sizes does not know their
number.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention, AttnProcessor2_0, FusedAttnProcessor2_0
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ingot.runtimes.errors import InputError

from ._forward import Forward, forward_replaced

EXACT = True
DEFAULT, MOST = 4, 64


def value(text: str | None) -> int:
    """The number of slices. Raises InputError."""
    if text is None:
        return DEFAULT
    if not text.isdecimal() or not 2 <= int(text) <= MOST:
        raise InputError(f"sliced_attention={text}: a number of slices from 2 to {MOST} is needed")
    return int(text)


def applies(module: nn.Module) -> bool:
    """Whether the module attends."""
    return any(isinstance(part, Attention) for part in module.modules())


@contextmanager
def applied(module: nn.Module, slices: int = DEFAULT) -> Iterator[None]:
    """Slice every self-attention of the module. Raises InputError naming those that do not call torch's function."""
    found = {name: part for name, part in module.named_modules() if isinstance(part, Attention)}
    others = {
        name: type(part.processor).__name__
        for name, part in found.items()
        if type(part.processor) not in (AttnProcessor2_0, FusedAttnProcessor2_0)
    }
    if others:
        listed = "; ".join(f"{name}: {processor}" for name, processor in others.items())
        raise InputError(f"sliced_attention cannot slice these, leave it out: {listed}")
    with ExitStack() as stack:
        for part in found.values():
            stack.enter_context(forward_replaced(part, lambda forward: _sliced(forward, slices)))
        yield


def _sliced(forward: Forward, slices: int) -> Forward:
    def attend(hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, *args: Any, **kwargs: Any) -> Tensor:
        if encoder_hidden_states is not None:  # a prompt's 77 keys: there is little to save
            kept: Tensor = forward(hidden_states, encoder_hidden_states, *args, **kwargs)
            return kept
        with _Slices(slices):
            attended: Tensor = forward(hidden_states, None, *args, **kwargs)
            return attended

    return attend


class _Slices(TorchFunctionMode):
    """Has `scaled_dot_product_attention` compute its queries in parts while it is entered."""

    def __init__(self, slices: int) -> None:
        super().__init__()
        self.slices = slices

    def __torch_function__(
        self, function: Callable[..., Any], types: Sequence[Any], args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # fmt: skip
        """The function itself, in parts if it is attention."""
        given = dict(kwargs or {})
        if function is not F.scaled_dot_product_attention:
            return function(*args, **given)
        query, key, tensor = args
        mask, length = given.pop("attn_mask", None), query.shape[2]
        bounds = [length * i // self.slices for i in range(self.slices + 1)]

        def part(start: Any, end: Any) -> Tensor:
            own = mask if mask is None or _same_for_all(mask) else mask[..., start:end, :]
            attended: Tensor = function(query[:, :, start:end], key, tensor, attn_mask=own, **given)
            return attended

        return torch.cat([part(*pair) for pair in itertools.pairwise(bounds)], dim=2)


def _same_for_all(mask: Tensor) -> bool:
    """Whether a mask (..., queries or 1, keys) says the same of every query."""
    return isinstance(mask.shape[-2], int) and mask.shape[-2] == 1
